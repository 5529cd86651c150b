/* call_keeper.h describes this. */
#include "call_keeper.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "call_state.h"

/* The packets, in MessagePack: an array of the packet's number and its fields. */
#define NUMBER_SPAWNED 12
#define NUMBER_ENDED 17
#define FALSE 0xc2
#define ONE_BYTE 0xcc /* a number from 128 to 255 follows */

static const uint8_t SPAWNED[] = {0x94, NUMBER_SPAWNED, FALSE, FALSE, FALSE};
static const uint8_t EXITED[] = {0x93, NUMBER_ENDED, 0xa6, 'e', 'x', 'i', 't', 'e', 'd'};
static const uint8_t SIGNALLED[] = {0x93, NUMBER_ENDED, 0xa9, 's', 'i', 'g',
                                    'n',  'a',          'l',  'l', 'e', 'd'};

/* The longest packet that is known here, and a byte that shows that one is longer. */
#define WORD_MAX (sizeof SIGNALLED + 3)

struct word {
    uint8_t bytes[WORD_MAX];
    size_t length;
};

/*
 * The next packet, which stays where it is. 1; 0: there is none yet; -errno. One with descriptors,
 * an empty one and the end are a word of no bytes.
 */
static int look_at(int fd, struct word *word)
{
    struct iovec part = {.iov_base = word->bytes, .iov_len = sizeof word->bytes};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    /* Without room for what comes with it, the flags say that something does; and while the packet
     * stays, nothing of that is closed here. */
    ssize_t length = recvmsg(fd, &message, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    if (length < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    word->length = message.msg_flags & MSG_CTRUNC ? 0 : (size_t)length;
    return 1;
}

/* Takes the packet that was looked at. */
static void take_word(int fd)
{
    uint8_t ignored;
    ssize_t length = recv(fd, &ignored, sizeof ignored, MSG_DONTWAIT);

    (void)length;
}

static bool is_spawned(const struct word *word)
{
    return word->length == sizeof SPAWNED && !memcmp(word->bytes, SPAWNED, sizeof SPAWNED);
}

/* The number that is all of a word behind its beginning; -1: it is another word. */
static int number_behind(const struct word *word, const uint8_t *start, size_t length)
{
    const uint8_t *at = word->bytes + length;

    if (word->length <= length || memcmp(word->bytes, start, length) != 0)
        return -1;
    if (word->length == length + 1 && at[0] < 128)
        return at[0];
    return word->length == length + 2 && at[0] == ONE_BYTE && at[1] >= 128 ? at[1] : -1;
}

/* Whether it is an end, and which. */
static bool is_end(const struct word *word, struct pv_ending *ending)
{
    int status = number_behind(word, EXITED, sizeof EXITED);
    int number = number_behind(word, SIGNALLED, sizeof SIGNALLED);

    if (status >= 0)
        *ending = (struct pv_ending){.kind = PV_CALL_EXITED, .status = (uint32_t)status};
    else if (number > 0 && (unsigned)number <= PV_CALL_SIGNAL_MAX)
        *ending = (struct pv_ending){.kind = PV_CALL_SIGNALLED, .status = (uint32_t)number};
    else
        return false;
    return true;
}

/* What the shell says of such an end. */
static uint32_t status_of(const struct pv_ending *ending)
{
    return ending->kind == PV_CALL_EXITED ? ending->status : 128 + ending->status;
}

int pv_keeper_fd(const struct pv_keeper *keeper)
{
    return keeper->state == PV_KEEPER_NONE ? -1 : keeper->fd;
}

void pv_keeper_follow(struct pv_call *call, int fd, int has_spawned)
{
    call->keeper = (struct pv_keeper){
        .state = has_spawned ? PV_KEEPER_SPAWNED : PV_KEEPER_ASKED, .fd = fd};
}

/* Whether the agent has ended the call before it was begun. */
static bool is_given_up(const struct pv_call *call)
{
    return __atomic_load_n(&call->orders, __ATOMIC_ACQUIRE) &
           (PV_ORDER_CANCEL | PV_ORDER_ABORT | PV_ORDER_NOW);
}

bool pv_keeper_meet(struct pv_call *call, int *error)
{
    struct pv_keeper *keeper = &call->keeper;
    struct pollfd fds[] = {{.fd = keeper->fd, .events = POLLIN},
                           {.fd = call->wake_fd, .events = POLLIN}};
    struct word word;
    int found;

    *error = 0;
    while (keeper->state == PV_KEEPER_ASKED) {
        if (is_given_up(call)) {
            keeper->state = PV_KEEPER_NONE;
            call->is_unbegun = true;
            return true;
        }
        if (poll(fds, 2, -1) < 0)
            continue; /* EINTR */
        if (fds[1].revents)
            pv_call_woken(call);
        if (!fds[0].revents)
            continue;
        found = look_at(keeper->fd, &word);
        if (found > 0 && is_spawned(&word)) {
            take_word(keeper->fd);
            keeper->state = PV_KEEPER_SPAWNED;
            pv_call_note(call, PV_CALL_NOTE_STARTED);
        } else if (found) {
            keeper->state = PV_KEEPER_NONE;
            *error = found < 0 ? -found : 0;
            return false;
        }
    }
    return true;
}

void pv_keeper_hear(struct pv_call *call)
{
    static const char GONE[] = "the keeper of the service has ended";
    struct pv_keeper *keeper = &call->keeper;
    struct pv_ending ending = {
        .kind = PV_CALL_PROBLEM, .status = 125, .length = sizeof GONE - 1};
    struct word word;
    int found;

    if (is_given_up(call)) { /* then that counts, which is obeyed next */
        keeper->state = PV_KEEPER_NONE;
        return;
    }
    found = look_at(keeper->fd, &word);
    if (!found)
        return;
    keeper->state = PV_KEEPER_NONE;
    if (found > 0 && is_end(&word, &ending)) {
        take_word(keeper->fd);
        pv_call_main_has_exited(call, status_of(&ending));
    } else {
        memcpy(ending.text, GONE, sizeof GONE - 1);
        pv_call_drop_streams(call);
    }
    pv_call_decide(call, &ending);
}
