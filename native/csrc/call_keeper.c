/* call_keeper.h describes this. */
#include "call_keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "call_state.h"

/* The packets, in MessagePack: an array of the packet's number and its fields. */
#define NUMBER_FINISHED 3
#define NUMBER_SPAWNED 12
#define NUMBER_CONNECTED 13
#define NUMBER_ENDED 17
#define FALSE 0xc2
#define ONE_BYTE 0xcc /* a number from 128 to 255 follows */

static const uint8_t FINISHED[] = {0x91, NUMBER_FINISHED};
static const uint8_t SPAWNED[] = {0x94, NUMBER_SPAWNED, FALSE, FALSE, FALSE};
static const uint8_t CONNECTED[] = {0x94, NUMBER_CONNECTED, FALSE, FALSE, FALSE};
static const uint8_t EXITED[] = {0x93, NUMBER_ENDED, 0xa6, 'e', 'x', 'i', 't', 'e', 'd'};
static const uint8_t SIGNALLED[] = {0x93, NUMBER_ENDED, 0xa9, 's', 'i', 'g',
                                    'n',  'a',          'l',  'l', 'e', 'd'};

/* The longest packet that is known here, and a byte that shows that one is longer. */
#define WORD_MAX (sizeof SIGNALLED + 3)

struct word {
    uint8_t bytes[WORD_MAX];
    size_t length;
    bool passes; /* descriptors came with it */
};

/* The next packet, which stays where it is. 1; 0: there is none yet; -errno. An empty one and the end
 * are a word of no bytes. */
static int look_at(int fd, struct word *word)
{
    struct iovec part = {.iov_base = word->bytes, .iov_len = sizeof word->bytes};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    /* Without room for what comes with it, the flags say that something does; and while the packet
     * stays, nothing of that is closed here. */
    ssize_t length = recvmsg(fd, &message, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    if (length < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    word->length = (size_t)length;
    word->passes = message.msg_flags & MSG_CTRUNC;
    return 1;
}

/* Takes the packet that was looked at. */
static void take_word(int fd)
{
    uint8_t ignored;
    ssize_t length = recv(fd, &ignored, sizeof ignored, MSG_DONTWAIT);

    (void)length;
}

/* Takes the packet that was looked at and the one descriptor that is to come with it: that, or
 * -errno. This may wait for whoever has passed more. */
static int take_passed(int fd)
{
    enum { ROOM = 2 };
    union {
        char bytes[CMSG_SPACE(ROOM * sizeof(int))];
        struct cmsghdr aligned;
    } control;
    uint8_t ignored;
    struct iovec part = {.iov_base = &ignored, .iov_len = sizeof ignored};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    struct cmsghdr *rights;
    int passed[ROOM], count = 0;

    if (recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) < 0)
        return -errno;
    rights = CMSG_FIRSTHDR(&message);
    if (rights && rights->cmsg_level == SOL_SOCKET && rights->cmsg_type == SCM_RIGHTS) {
        count = (int)((rights->cmsg_len - CMSG_LEN(0)) / sizeof *passed);
        memcpy(passed, CMSG_DATA(rights), (size_t)count * sizeof *passed);
    }
    if (count == 1 && !(message.msg_flags & MSG_CTRUNC))
        return passed[0];
    while (count)
        close(passed[--count]);
    return -EPROTO;
}

static bool is_plainly(const struct word *word, const uint8_t *bytes, size_t length)
{
    return word->length == length && !memcmp(word->bytes, bytes, length);
}

static bool is_spawned(const struct word *word)
{
    return !word->passes && is_plainly(word, SPAWNED, sizeof SPAWNED);
}

static bool is_connected(const struct word *word)
{
    return word->passes && is_plainly(word, CONNECTED, sizeof CONNECTED);
}

/* The service is at the other end of a socket, which takes the place of the streams that were made.
 * The keeper has done its part, and is told so. 0 or -errno: then the streams are as they were. */
static int connect_streams(struct pv_call *call)
{
    int *fds = call->crewed.fds, service = take_passed(call->keeper.fd), twice;

    if (service < 0)
        return service;
    twice = fcntl(service, F_DUPFD_CLOEXEC, 0);
    if (twice < 0) {
        int error = errno;

        close(service);
        return -error;
    }
    for (int i = 0; i < PV_CALL_STREAMS; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    fds[0] = service;
    fds[1] = twice;
    fds[2] = -1;
    call->crewed.shuts = true; /* to close one of the two ends nothing */
    /* It fails if the keeper has ended, which is of no meaning to the call any more. */
    (void)send(call->keeper.fd, FINISHED, sizeof FINISHED, MSG_DONTWAIT | MSG_NOSIGNAL);
    return 0;
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

    if (word->passes)
        return false;
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
    return keeper->state == PV_KEEPER_SPAWNED ? keeper->fd : -1;
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
        } else if (found > 0 && is_connected(&word)) {
            *error = -connect_streams(call);
            keeper->state = *error ? PV_KEEPER_NONE : PV_KEEPER_CONNECTED;
            if (*error)
                return false;
            pv_call_note(call, PV_CALL_NOTE_STARTED);
        } else if (found) {
            keeper->state = PV_KEEPER_NONE;
            *error = found < 0 ? -found : 0;
            return false;
        }
    }
    return true;
}

void pv_keeper_heed_streams(struct pv_call *call)
{
    static const struct pv_ending WELL = {.kind = PV_CALL_EXITED};

    /* Whichever side has closed them: nothing of a socket can be heard after that. */
    if (call->keeper.state == PV_KEEPER_CONNECTED && !call->is_lost && call->inward[0].is_over &&
        call->outward[0].is_over) {
        call->keeper.state = PV_KEEPER_NONE;
        pv_call_decide(call, &WELL);
    }
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
