#include "agent.h"

#include "clock.h"
#include "log.h"
#include "timing.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define RETRY_MS 500
#define RETRY_MS_MAX 5000
/* Messages that are read before others have a turn. */
#define MESSAGES_AT_ONCE 16
/* An agent that reads nothing while so much comes is as good as gone: a hundred messages. */
#define SEND_BUFFER (256 * 1024)

struct agent {
    pa_mainloop_api *loop;
    const char *path;
    const struct agent_events *events;
    void *context;
    int fd; /* -1: not connected */
    pa_io_event *io;
    bool is_welcome;
    bool is_broken; /* to be given up in the main loop */
    bool is_told;   /* that it is not there */
    char refused[LINK_LINE_MAX + 1]; /* why, as it was told last; "": it was not */
    struct clock_timer retry;
    int64_t patience;
    uint8_t bytes[LINK_DATAGRAM_MAX + 1];
};

static void disconnect(struct agent *agent)
{
    bool was_welcome = agent->is_welcome;

    if (agent->io)
        agent->loop->io_free(agent->io);
    agent->io = NULL;
    if (agent->fd != -1)
        close(agent->fd);
    agent->fd = -1;
    agent->is_welcome = agent->is_broken = false;
    clock_timer_set(&agent->retry, clock_now() + agent->patience);
    agent->patience = agent->patience * 2 < RETRY_MS_MAX ? agent->patience * 2 : RETRY_MS_MAX;
    if (was_welcome)
        agent->events->lost(agent->context);
}

/* Later, as this may be in the middle of something. */
static void give_up(struct agent *agent)
{
    agent->is_broken = true;
    clock_timer_set(&agent->retry, clock_now());
}

void agent_breach(struct agent *agent, const char *why)
{
    log_warning("the agent breaks the rules: %s", why);
    give_up(agent);
}

void agent_send(struct agent *agent, const struct link_message *message)
{
    static uint8_t bytes[LINK_DATAGRAM_MAX];
    size_t count = link_build(message, bytes);

    if (agent->fd == -1 || agent->is_broken)
        return;
    if (!count || send(agent->fd, bytes, count, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)count) {
        log_warning("cannot tell the agent anything: %s", count ? strerror(errno) : "no such message");
        give_up(agent);
    }
}

#define NO_DESCRIPTOR (-1)
#define WRONG_DESCRIPTORS (-2)

/* The one descriptor that came with a message, or that there was none, or more than one. */
static int only_descriptor(struct msghdr *message)
{
    int fd = NO_DESCRIPTOR;

    for (struct cmsghdr *each = CMSG_FIRSTHDR(message); each; each = CMSG_NXTHDR(message, each)) {
        if (each->cmsg_level != SOL_SOCKET || each->cmsg_type != SCM_RIGHTS)
            continue;
        /* The room for one is aligned, and so is one for two. */
        for (size_t at = 0; at < each->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
            int one;

            memcpy(&one, CMSG_DATA(each) + at, sizeof one);
            if (fd == NO_DESCRIPTOR) {
                fd = one;
                continue;
            }
            close(one);
            if (fd != WRONG_DESCRIPTORS)
                close(fd);
            fd = WRONG_DESCRIPTORS;
        }
    }
    if (!(message->msg_flags & MSG_CTRUNC))
        return fd;
    if (fd >= 0)
        close(fd);
    return WRONG_DESCRIPTORS;
}

/* Receives a datagram. Returns its length, 0 at the end, or -1 with errno. */
static ssize_t receive(struct agent *agent, int *fd)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec part = {agent->bytes, sizeof agent->bytes};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};
    ssize_t count = recvmsg(agent->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    *fd = count < 0 ? NO_DESCRIPTOR : only_descriptor(&message);
    return count;
}

/* The end of a stream of frames, as a descriptor that never makes this program wait. */
static bool is_stream(int fd)
{
    int type = 0;
    socklen_t size = sizeof type;

    return !getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) && type == SOCK_STREAM &&
           !fcntl(fd, F_SETFL, O_NONBLOCK);
}

static void take(struct agent *agent, size_t count, int fd)
{
    struct link_message message;

    if (!link_parse(&message, NULL, LINK_FROM_AGENT, agent->bytes, count) ||
        fd == WRONG_DESCRIPTORS || link_has_descriptor(message.type) != (fd >= 0) ||
        (fd >= 0 && !is_stream(fd))) {
        agent_breach(agent, "a malformed message");
    } else if (message.type == LINK_REFUSED) {
        /* It is asked again every few seconds, for as long as the other user is there. */
        if (strcmp(agent->refused, message.line) != 0)
            log_warning("the agent refuses: %s: waiting", message.line);
        strcpy(agent->refused, message.line);
        give_up(agent);
    } else if (message.type == LINK_WELCOME) {
        if (agent->is_welcome || message.version != LINK_VERSION) {
            agent_breach(agent, "another version of the link");
        } else {
            agent->is_welcome = true;
            agent->is_told = false;
            *agent->refused = '\0';
            agent->patience = RETRY_MS;
            log_detail("connected to the agent");
            agent->events->welcome(agent->context);
        }
    } else if (!agent->is_welcome) {
        agent_breach(agent, "a message before its time");
    } else {
        agent->events->message(agent->context, &message, fd);
        return;
    }
    if (fd >= 0)
        close(fd);
}

static void readable(pa_mainloop_api *loop, pa_io_event *event, int of, pa_io_event_flags_t flags,
                     void *context)
{
    struct agent *agent = context;

    (void)loop;
    (void)event;
    (void)of;
    (void)flags;
    for (int i = 0; i < MESSAGES_AT_ONCE && !agent->is_broken; i++) {
        int fd;
        ssize_t count = receive(agent, &fd);

        if (count < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (count <= 0) {
            if (fd >= 0)
                close(fd);
            log_detail("the agent is gone");
            disconnect(agent);
            return;
        }
        take(agent, (size_t)count, fd);
    }
}

/* The agent is root, or in local mode this user: no other user can put a socket in its place. */
static bool is_trusted(int fd)
{
    struct ucred peer;
    socklen_t size = sizeof peer;

    return !getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) &&
           (peer.uid == 0 || peer.uid == getuid());
}

static int connected_socket(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const int size = SEND_BUFFER;
    int fd = -1, error = ENAMETOOLONG;

    if (strlen(path) < sizeof address.sun_path) {
        strcpy(address.sun_path, path);
        fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (fd != -1 && !connect(fd, (struct sockaddr *)&address, sizeof address)) {
            setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
            return fd;
        }
        error = errno;
    }
    if (fd != -1)
        close(fd);
    errno = error;
    return -1;
}

/* Where agents listen: in a VM, and in dom0, whose own agent has a folder to itself. A machine is one
 * of both, whatever packages it has. */
static const char *const USUAL[] = {"/run/pedos/sound.sock", "/run/pedos-agent/sound.sock"};

/* Connects to the one that was named, or to the first usual one that is there; *path is which. */
static int find(const struct agent *agent, const char **path)
{
    *path = agent->path;
    if (agent->path)
        return connected_socket(agent->path);
    for (size_t i = 0; i < sizeof USUAL / sizeof *USUAL; i++) {
        int fd = connected_socket(*path = USUAL[i]);

        if (fd != -1 || errno != ENOENT)
            return fd;
    }
    *path = USUAL[0];
    return -1;
}

static void try_again(void *context)
{
    struct agent *agent = context;
    struct link_message hello = {.type = LINK_HELLO, .version = LINK_VERSION,
                                 .line = "pedos-sound " PEDOS_VERSION};
    const char *path;

    if (agent->is_broken) {
        disconnect(agent);
        return;
    }
    if (agent->fd != -1)
        return;
    agent->fd = find(agent, &path);
    if (agent->fd == -1 || !is_trusted(agent->fd)) {
        if (!agent->is_told)
            log_warning("no agent at %s (%s): waiting for it", path,
                        agent->fd == -1 ? strerror(errno) : "it is another user's");
        agent->is_told = true;
        disconnect(agent);
        return;
    }
    agent->io = agent->loop->io_new(agent->loop, agent->fd, PA_IO_EVENT_INPUT, readable, agent);
    agent_send(agent, &hello);
}

struct agent *agent_new(pa_mainloop_api *loop, const char *path, const struct agent_events *events,
                        void *context)
{
    struct agent *agent = calloc(1, sizeof *agent);

    if (!agent)
        return NULL;
    agent->loop = loop;
    agent->path = path;
    agent->events = events;
    agent->context = context;
    agent->fd = -1;
    agent->patience = RETRY_MS;
    clock_timer_init(&agent->retry, loop, try_again, agent);
    clock_timer_set(&agent->retry, clock_now());
    return agent;
}

void agent_free(struct agent *agent)
{
    if (agent->io)
        agent->loop->io_free(agent->io);
    if (agent->fd != -1)
        close(agent->fd);
    clock_timer_free(&agent->retry);
    free(agent);
}
