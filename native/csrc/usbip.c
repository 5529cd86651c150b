#include "usbip.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define HEADER 48u
#define PACKET 16u /* an entry of a table of isochronous packets */

_Static_assert(HEADER <= PV_CHECK_KEEP && PACKET <= PV_CHECK_KEEP, "what is shown again");

enum { CMD_SUBMIT = 1, CMD_UNLINK = 2, RET_SUBMIT = 3, RET_UNLINK = 4 };
enum { OUT = 0, IN = 1 };

/* Places in a header; all numbers are big-endian. */
enum {
    COMMAND = 0,
    SEQNUM = 4,
    DEVID = 8,
    DIRECTION = 12,
    ENDPOINT = 16,
    FLAGS = 20,        /* of CMD_SUBMIT */
    LENGTH = 24,
    PACKETS = 32,      /* of RET_SUBMIT too */
    UNLINKED = 20,     /* of CMD_UNLINK */
    STATUS = 20,       /* of the returns */
    ACTUAL_LENGTH = 24, /* of RET_SUBMIT */
    ERROR_COUNT = 36,
};

/* Places in an entry of a table. */
enum { PACKET_OFFSET = 0, PACKET_LENGTH = 4, PACKET_ACTUAL = 8 };

#define ENDPOINT_MAX 15u
#define ERRNO_MAX 4095u /* Linux, include/linux/err.h */
#define NO_PACKETS 0xffffffffu

/*
 * What a driver may wish for (Linux, include/linux/usb.h): short reads are errors, the next free
 * frame, UHCI's bandwidth, an empty last packet, no interrupt, direction, and that the memory is in
 * pieces. What is left out is about the memory of the kernel that sends it: its own address for
 * DMA, and that a buffer is freed with its transfer.
 */
#define FLAGS_PASSED (0x0001u | 0x0002u | 0x0020u | 0x0040u | 0x0080u | 0x0200u | 0x00040000u)

/* The beginning of a command as usbip-host needs it to go on: command, seqnum, devid. */
#define BEGINNING 12u

struct command {
    uint32_t seqnum;
    uint32_t unlinks; /* of CMD_UNLINK: the seqnum of another */
    uint32_t length;  /* of CMD_SUBMIT: bytes of its buffer */
    uint16_t packets;
    uint8_t is_unlink, is_in;
};

/* The first bytes of data or of a table, as far as they have come. */
struct beginning {
    uint8_t bytes[BEGINNING];
    uint8_t have, wanted; /* wanted: 0 or BEGINNING */
};

struct direction {
    uint32_t data;    /* bytes of data still to come */
    uint32_t packets; /* entries of the table still to come, behind the data */
    uint32_t buffer;  /* bytes of the buffer that the packets lie in */
    uint32_t actual;  /* bytes that the packets' actual lengths have to add up to; returns alone */
    bool is_late;     /* this return, with its data and table, does not go on */
};

struct usbip {
    struct pv_check check; /* first: what the pump knows is a pointer to it */
    uint32_t devid;
    struct direction commands, returns;
    struct beginning looked_at[2]; /* of data, and of a table behind few bytes of it */
    uint32_t outstanding;          /* how many */
    uint64_t bytes;                /* all their lengths */
    /* Ended by usbip-host before it read that they were unlinked: a few of the last ones. What is
     * none, or none any more, is marked as an unlink. */
    struct command late[PV_USBIP_LATE_MAX];
    uint32_t next_late;
    struct command table[PV_USBIP_COMMANDS_MAX];
};

static uint32_t number(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static void put_number(uint8_t *at, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        at[i] = (uint8_t)(value >> (24 - 8 * i));
}

static bool refuse(struct usbip *usbip, const char *why)
{
    if (!usbip->check.why)
        usbip->check.why = why;
    return false;
}

/* 0 or a negative error number. */
static bool is_status(uint32_t value)
{
    return value == 0 || -value <= ERRNO_MAX;
}

/* A short list: a search takes less than the kernel's own for the same command. */
static struct command *find(struct usbip *usbip, uint32_t seqnum)
{
    for (uint32_t i = 0; i < usbip->outstanding; i++)
        if (usbip->table[i].seqnum == seqnum)
            return &usbip->table[i];
    return NULL;
}

static bool add(struct usbip *usbip, struct command command)
{
    if (usbip->outstanding == PV_USBIP_COMMANDS_MAX)
        return refuse(usbip, "too many commands have no return yet");
    if (find(usbip, command.seqnum))
        return refuse(usbip, "a sequence number is used twice");
    if (usbip->bytes + command.length > PV_USBIP_BYTES_MAX)
        return refuse(usbip, "the transfers under way are too long together");
    usbip->bytes += command.length;
    usbip->table[usbip->outstanding++] = command;
    return true;
}

static void forget(struct usbip *usbip, struct command *command)
{
    usbip->bytes -= command->length;
    *command = usbip->table[--usbip->outstanding];
}

/*
 * usbip-host answers that there was nothing to unlink (status 0) when the transfer has ended and its
 * return waits to be sent. It sends returns of transfers first, but one that ends while it sends
 * those of unlinks comes after its own. By then vhci-hcd has given the transfer back.
 */
static void expect_late(struct usbip *usbip, const struct command *command)
{
    usbip->late[usbip->next_late++ % PV_USBIP_LATE_MAX] = *command;
}

static struct command *find_late(struct usbip *usbip, uint32_t seqnum)
{
    for (uint32_t i = 0; i < PV_USBIP_LATE_MAX; i++)
        if (!usbip->late[i].is_unlink && usbip->late[i].seqnum == seqnum)
            return &usbip->late[i];
    return NULL;
}

/* From here on bytes come that usbip-host may take for a command. */
static void watch_beginning(struct usbip *usbip)
{
    struct beginning *free = &usbip->looked_at[usbip->looked_at[0].wanted ? 1 : 0];

    *free = (struct beginning){.wanted = BEGINNING};
}

/* Collects these bytes of the stream. The kernel needs a whole header to act, and so more. */
static bool look_at_beginnings(struct usbip *usbip, const uint8_t *bytes, size_t count)
{
    for (int i = 0; i < 2; i++) {
        struct beginning *each = &usbip->looked_at[i];
        size_t taken = (size_t)(each->wanted - each->have);
        uint32_t command;

        if (!each->wanted)
            continue;
        if (taken > count)
            taken = count;
        memcpy(each->bytes + each->have, bytes, taken);
        each->have = (uint8_t)(each->have + taken);
        if (each->have < each->wanted)
            continue;
        each->wanted = 0;
        command = number(each->bytes + COMMAND);
        if ((command == CMD_SUBMIT || command == CMD_UNLINK) &&
            number(each->bytes + DEVID) == usbip->devid)
            return refuse(usbip, "data begins as a command");
    }
    return true;
}

static bool submit(struct usbip *usbip, uint8_t *header)
{
    struct direction *stream = &usbip->commands;
    uint32_t length = number(header + LENGTH), packets = number(header + PACKETS);
    bool is_in = number(header + DIRECTION) == IN;

    if (length > PV_USBIP_TRANSFER_MAX)
        return refuse(usbip, "a transfer is too long");
    if (packets == NO_PACKETS)
        packets = 0;
    if (packets > PV_USBIP_PACKETS_MAX)
        return refuse(usbip, "a transfer has too many packets");
    put_number(header + FLAGS, number(header + FLAGS) & FLAGS_PASSED);
    stream->data = is_in ? 0 : length;
    stream->packets = packets;
    stream->buffer = length;
    if (stream->data || stream->packets)
        watch_beginning(usbip);
    return add(usbip, (struct command){.seqnum = number(header + SEQNUM),
                                       .length = length,
                                       .packets = (uint16_t)packets,
                                       .is_in = is_in});
}

static bool take_command(struct usbip *usbip, uint8_t *header)
{
    uint32_t command = number(header + COMMAND);

    if (number(header + DEVID) != usbip->devid)
        return refuse(usbip, "a command is for another device");
    if (number(header + DIRECTION) > IN || number(header + ENDPOINT) > ENDPOINT_MAX)
        return refuse(usbip, "a command has an impossible endpoint");
    if (command == CMD_SUBMIT)
        return submit(usbip, header);
    if (command != CMD_UNLINK)
        return refuse(usbip, "an unknown command");
    return add(usbip, (struct command){.seqnum = number(header + SEQNUM),
                                       .unlinks = number(header + UNLINKED),
                                       .is_unlink = true});
}

static bool submitted(struct usbip *usbip, const struct command *command, const uint8_t *header)
{
    struct direction *stream = &usbip->returns;
    uint32_t actual = number(header + ACTUAL_LENGTH), packets = number(header + PACKETS);

    if (packets == NO_PACKETS)
        packets = 0;
    if (actual > command->length)
        return refuse(usbip, "a return has more bytes than were asked for");
    if (packets != command->packets)
        return refuse(usbip, "a return has another number of packets than its command");
    if (number(header + ERROR_COUNT) > packets)
        return refuse(usbip, "a return has more errors than packets");
    stream->data = command->is_in ? actual : 0;
    stream->packets = packets;
    stream->buffer = command->length;
    stream->actual = actual;
    return true;
}

static bool take_return(struct usbip *usbip, uint8_t *header)
{
    uint32_t kind = number(header + COMMAND);
    struct command *command = find(usbip, number(header + SEQNUM)), *unlinked;
    struct command *late = command ? NULL : find_late(usbip, number(header + SEQNUM));

    usbip->returns.is_late = late != NULL;
    if (kind != RET_SUBMIT && kind != RET_UNLINK)
        return refuse(usbip, "an unknown return");
    if (late)
        command = late;
    if (!command || command->is_unlink != (kind == RET_UNLINK))
        return refuse(usbip, "a return that no command waits for");
    if (!is_status(number(header + STATUS)))
        return refuse(usbip, "a return has an impossible status");
    if (kind == RET_SUBMIT) {
        if (!submitted(usbip, command, header))
            return false;
        if (late)
            late->is_unlink = true; /* it does not return again */
        else
            forget(usbip, command);
        return true;
    }
    /* The transfer itself has no return any more, if it had none yet. */
    unlinked = find(usbip, command->unlinks);
    if (unlinked && !unlinked->is_unlink) {
        if (!number(header + STATUS))
            expect_late(usbip, unlinked);
        forget(usbip, unlinked);
        command = find(usbip, number(header + SEQNUM)); /* it may have moved */
    }
    forget(usbip, command);
    return true;
}

static bool packet_fits(struct usbip *usbip, const struct direction *stream, const uint8_t *entry)
{
    uint64_t end = (uint64_t)number(entry + PACKET_OFFSET) + number(entry + PACKET_LENGTH);

    if (end > stream->buffer)
        return refuse(usbip, "a packet is outside its transfer");
    return true;
}

static bool packet_returns(struct usbip *usbip, struct direction *stream, const uint8_t *entry)
{
    uint32_t actual = number(entry + PACKET_ACTUAL);

    if (actual > number(entry + PACKET_LENGTH))
        return refuse(usbip, "a packet has more bytes than were asked for");
    if (actual > stream->actual || (stream->packets == 1 && actual != stream->actual))
        return refuse(usbip, "packets have another length than their transfer");
    stream->actual -= actual;
    return true;
}

/* Takes these bytes out of what goes on. */
static void drop(struct usbip *usbip, uint8_t *part, size_t size, size_t behind)
{
    memmove(part, part + size, behind);
    usbip->check.dropped += size;
}

/* One direction: header, data, table, and again. */
static int64_t look(struct usbip *usbip, bool is_command, uint8_t *bytes, size_t count)
{
    struct direction *stream = is_command ? &usbip->commands : &usbip->returns;
    size_t at = 0;

    usbip->check.dropped = 0;
    while (at < count && !usbip->check.why) {
        size_t size = stream->data ? stream->data : stream->packets ? PACKET : HEADER;
        uint8_t *part = bytes + at;

        if (size > count - at) {
            if (!stream->data)
                break;
            size = count - at;
        }
        if (is_command && !look_at_beginnings(usbip, part, size))
            break;
        if (stream->data) {
            stream->data -= (uint32_t)size;
            if (is_command && !stream->data && stream->packets)
                watch_beginning(usbip);
        } else if (stream->packets) {
            if (!packet_fits(usbip, stream, part) ||
                (!is_command && !packet_returns(usbip, stream, part)))
                break;
            stream->packets--;
        } else if (!(is_command ? take_command : take_return)(usbip, part)) {
            break;
        }
        if (stream->is_late) {
            drop(usbip, part, size, count - at - size);
            count -= size;
        } else {
            at += size;
        }
    }
    return usbip->check.why ? PV_REFUSED : (int64_t)at;
}

int64_t pv_usbip_commands(struct pv_check *check, uint8_t *bytes, size_t count)
{
    return look((struct usbip *)check, true, bytes, count);
}

int64_t pv_usbip_returns(struct pv_check *check, uint8_t *bytes, size_t count)
{
    return look((struct usbip *)check, false, bytes, count);
}

struct pv_check *pv_usbip_new(uint32_t devid, int is_source)
{
    struct usbip *usbip = calloc(1, sizeof *usbip);

    if (!usbip)
        return NULL;
    usbip->devid = devid;
    for (uint32_t i = 0; i < PV_USBIP_LATE_MAX; i++)
        usbip->late[i].is_unlink = true;
    usbip->check.from_ring = is_source ? pv_usbip_commands : pv_usbip_returns;
    usbip->check.to_ring = is_source ? pv_usbip_returns : pv_usbip_commands;
    return &usbip->check;
}

void pv_usbip_free(struct pv_check *check)
{
    free(check);
}

unsigned pv_usbip_outstanding(const struct pv_check *check)
{
    return ((const struct usbip *)check)->outstanding;
}

size_t pv_usbip_dropped(const struct pv_check *check)
{
    return check->dropped;
}

const char *pv_usbip_why(const struct pv_check *check)
{
    return check->why ? check->why : "";
}
