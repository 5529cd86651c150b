/*
 * libFuzzer's target for the check of USB/IP streams: the input is a script of what the other VM
 * sends, in which pieces, and how this VM's kernel takes it. The kernel gets what the check lets
 * through and nothing else. It is as careless as Linux is: it believes each length, drops a command
 * for an endpoint that it does not have, together with the header alone, and reads a table only if
 * the endpoint is isochronous.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "usbip.c"

#define CHECK(what)      \
    do {                 \
        if (!(what))     \
            abort();     \
    } while (0)

#define THE_DEVICE 0x10002u
#define STREAM 8192

static struct script {
    const uint8_t *at, *end;
} script;

static uint32_t take(unsigned bytes)
{
    uint32_t value = 0;

    for (; bytes && script.at < script.end; bytes--)
        value = value << 8 | *script.at++;
    return value;
}

static const uint32_t LENGTHS[] = {0, 1, 4, 8, 12, 13, 16, 31, 48, 60, 96, 512,
                                   PV_USBIP_TRANSFER_MAX, PV_USBIP_TRANSFER_MAX + 1, 0x7fffffff,
                                   0xffffffff};

static uint32_t some_number(void)
{
    uint8_t which = (uint8_t)take(1);

    return which < 128 ? LENGTHS[which % 16] : which < 192 ? which % 8 : take(4);
}

/* The other VM's stream, and how much of it the check has let through. */
static uint8_t stream[STREAM];
static size_t written, shown, passed;

static void say(const uint8_t *bytes, size_t count)
{
    if (count > STREAM - written)
        count = STREAM - written;
    memcpy(stream + written, bytes, count);
    written += count;
}

static void say_number(uint32_t value)
{
    uint8_t bytes[4];

    put_number(bytes, value);
    say(bytes, sizeof bytes);
}

/* What the other VM adds to its stream: headers with any field, entries of tables, bytes. */
static void other_speaks(uint8_t what)
{
    uint32_t fields[12];
    uint8_t bytes[64];
    size_t count = take(1) % sizeof bytes;

    switch (what % 4) {
    case 0:
        memset(fields, 0, sizeof fields);
        fields[0] = take(1) % 6;
        fields[1] = take(1) % 32;
        fields[2] = count % 8 ? THE_DEVICE : some_number();
        fields[3] = take(1) % 4 ? take(1) % 2 : some_number();
        fields[4] = take(1) % 17;
        for (int i = 5; i < 10; i++)
            fields[i] = some_number();
        for (int i = 0; i < 12; i++)
            say_number(fields[i]);
        return;
    case 1:
        for (int i = 0; i < 4; i++)
            say_number(some_number());
        return;
    case 2:
        say_number(1 + take(1) % 2);
        say_number(take(1));
        say_number(THE_DEVICE);
        return;
    default:
        for (size_t i = 0; i < count; i++)
            bytes[i] = (uint8_t)take(1);
        say(bytes, count);
    }
}

/* This VM's kernel. */
static struct kernel {
    uint8_t part[48];
    size_t have;
    uint32_t data, packets, buffer, actual;
    int is_ended, is_return;
    struct {
        uint32_t seqnum, length, packets, unlinks;
        int is_in, is_unlink;
    } asked[64];
    unsigned count;
} kernel;

static int place_of(uint32_t seqnum)
{
    for (unsigned i = 0; i < kernel.count; i++)
        if (kernel.asked[i].seqnum == seqnum)
            return (int)i;
    return -1;
}

static void drop_asked(int place)
{
    if (place >= 0)
        kernel.asked[place] = kernel.asked[--kernel.count];
}

static void host_takes(const uint8_t *header, int mood)
{
    uint32_t length = number(header + LENGTH), packets = number(header + PACKETS);

    if (number(header + DEVID) != THE_DEVICE ||
        (number(header) != CMD_SUBMIT && number(header) != CMD_UNLINK)) {
        kernel.is_ended = 1;
        return;
    }
    if (number(header) == CMD_UNLINK)
        return;
    CHECK(number(header + DIRECTION) <= IN);
    CHECK(number(header + ENDPOINT) <= ENDPOINT_MAX);
    CHECK(!(number(header + FLAGS) & ~FLAGS_PASSED));
    CHECK(length <= PV_USBIP_TRANSFER_MAX);
    CHECK(packets <= PV_USBIP_PACKETS_MAX || packets == NO_PACKETS);
    if (mood == 1)
        return; /* no such endpoint: data or table are read as the next header */
    kernel.data = number(header + DIRECTION) == OUT ? length : 0;
    kernel.packets = mood == 2 || packets == NO_PACKETS ? 0 : packets;
    kernel.buffer = length;
}

static void vhci_takes(const uint8_t *header)
{
    int place = place_of(number(header + SEQNUM));

    CHECK(number(header) == RET_SUBMIT || number(header) == RET_UNLINK);
    CHECK(place >= 0);
    CHECK(kernel.asked[place].is_unlink == (number(header) == RET_UNLINK));
    if (number(header) == RET_UNLINK) {
        int other = place_of(kernel.asked[place].unlinks);

        if (other >= 0 && !kernel.asked[other].is_unlink)
            drop_asked(other);
        drop_asked(place_of(number(header + SEQNUM)));
        return;
    }
    kernel.actual = number(header + ACTUAL_LENGTH);
    kernel.buffer = kernel.asked[place].length;
    CHECK(kernel.actual <= kernel.buffer);
    kernel.packets = number(header + PACKETS) == NO_PACKETS ? 0 : number(header + PACKETS);
    CHECK(kernel.packets == kernel.asked[place].packets);
    kernel.data = kernel.asked[place].is_in ? kernel.actual : 0;
    drop_asked(place);
}

static void kernel_takes_packet(const uint8_t *entry)
{
    uint64_t offset = number(entry), length = number(entry + 4), actual = number(entry + 8);

    CHECK(offset + length <= kernel.buffer);
    if (kernel.is_return) {
        CHECK(actual <= length && actual <= kernel.actual);
        kernel.actual -= (uint32_t)actual;
        CHECK(kernel.packets > 1 || !kernel.actual);
    }
}

static void kernel_takes(uint8_t byte, int mood)
{
    if (kernel.is_ended)
        return;
    if (kernel.data) {
        kernel.data--;
        return;
    }
    kernel.part[kernel.have++] = byte;
    if (kernel.packets && kernel.have == PACKET) {
        kernel_takes_packet(kernel.part);
        kernel.packets--;
        kernel.have = 0;
    } else if (kernel.have == HEADER) {
        kernel.have = 0;
        if (kernel.is_return)
            vhci_takes(kernel.part);
        else
            host_takes(kernel.part, mood);
    }
}

/* Shows the check what has been said, up to some place in it; the kernel takes what it clears. */
static int show(struct pv_check *check, int mood)
{
    uint8_t copy[STREAM];
    size_t count;
    int64_t cleared;

    shown += take(1) * 8 + 1;
    if (shown > written)
        shown = written;
    count = shown - passed;
    memcpy(copy, stream + passed, count);
    cleared = check->from_ring(check, copy, count);
    if (cleared == PV_REFUSED) {
        CHECK(check->why && check->from_ring(check, copy, count) == PV_REFUSED);
        return 0;
    }
    CHECK(cleared >= 0 && (uint64_t)cleared + check->dropped <= count);
    CHECK(count - (size_t)cleared - check->dropped < PV_CHECK_KEEP);
    CHECK(kernel.is_return || !check->dropped); /* no command */
    for (int64_t i = 0; i < cleared; i++)
        kernel_takes(copy[i], mood);
    passed += (size_t)cleared + check->dropped;
    return 1;
}

/* Our own kernel's command (in the target), which is as it should be. */
static void vhci_asks(struct pv_check *check)
{
    uint8_t whole[HEADER + 512 + 8 * PACKET] = {0};
    uint32_t kind = take(1), length = LENGTHS[take(1) % 12], packets = kind & 2 ? take(1) % 8 : 0;
    uint32_t seqnum = take(1) % 32, unlinks = take(1) % 32;
    size_t size = HEADER;

    if (kernel.count == 64 || place_of(seqnum) >= 0)
        return;
    put_number(whole, kind & 4 ? CMD_UNLINK : CMD_SUBMIT);
    put_number(whole + SEQNUM, seqnum);
    put_number(whole + DEVID, THE_DEVICE);
    put_number(whole + DIRECTION, kind & 1);
    if (kind & 4) {
        put_number(whole + UNLINKED, unlinks);
        length = packets = 0;
    } else {
        put_number(whole + LENGTH, length);
        put_number(whole + PACKETS, packets);
        size += (kind & 1 ? 0 : length) + packets * PACKET;
    }
    CHECK(check->to_ring(check, whole, size) == (int64_t)size);
    kernel.asked[kernel.count].seqnum = seqnum;
    kernel.asked[kernel.count].length = length;
    kernel.asked[kernel.count].packets = packets;
    kernel.asked[kernel.count].unlinks = unlinks;
    kernel.asked[kernel.count].is_in = kind & 1;
    kernel.asked[kernel.count++].is_unlink = !!(kind & 4);
}

/* Our own kernel's return (in the source). */
static void host_answers(struct pv_check *check)
{
    uint8_t header[HEADER] = {0};
    const struct usbip *usbip = (const struct usbip *)check;
    const struct command *command;
    uint32_t late = take(1) % PV_USBIP_LATE_MAX;

    if (!usbip->returns.data && !usbip->returns.packets &&
        !usbip->late[late].is_unlink && !usbip->late[late].packets) {
        put_number(header, RET_SUBMIT);
        put_number(header + SEQNUM, usbip->late[late].seqnum);
        if (find((struct usbip *)check, usbip->late[late].seqnum))
            return; /* a later command has its number */
        CHECK(check->to_ring(check, header, HEADER) == 0 && check->dropped == HEADER);
        return;
    }
    if (!usbip->outstanding || usbip->returns.data || usbip->returns.packets)
        return;
    command = &usbip->table[take(1) % usbip->outstanding];
    put_number(header, command->is_unlink ? RET_UNLINK : RET_SUBMIT);
    put_number(header + SEQNUM, command->seqnum);
    if (!command->is_unlink && command->packets)
        return; /* one whose table would have to follow */
    CHECK(check->to_ring(check, header, HEADER) == HEADER);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int is_source;
    struct pv_check *check;

    script = (struct script){data, data + size};
    is_source = (int)take(1) % 2;
    check = pv_usbip_new(THE_DEVICE, is_source);
    CHECK(check);
    memset(&kernel, 0, sizeof kernel);
    kernel.is_return = !is_source;
    written = shown = passed = 0;
    while (script.at < script.end) {
        uint8_t what = (uint8_t)take(1);

        if (what < 128)
            other_speaks(what);
        else if (what < 160 && is_source)
            host_answers(check);
        else if (what < 160)
            vhci_asks(check);
        else if (!show(check, what % 3))
            break;
        CHECK(pv_usbip_outstanding(check) <= PV_USBIP_COMMANDS_MAX);
        CHECK(((struct usbip *)check)->bytes <= PV_USBIP_BYTES_MAX);
    }
    pv_usbip_free(check);
    return 0;
}
