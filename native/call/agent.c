#include "agent.h"

#include "say.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

/* Where agents listen: in a VM, and in dom0, whose own agent has a folder to itself. */
static const char *const USUAL[] = {"/run/pedos/calls.sock", "/run/pedos-agent/calls.sock"};
/* Where the command line finds its service; PEDOS_SOCKET may say what is so anyway. */
#define USUAL_SERVICE "/run/pedos/pedos.sock"
#define SERVICE_ENDING ".sock"
#define CALLS_ENDING ".calls"

/* Seconds in which the agent accepts a new connection; one that works does so at once. */
#define PATIENCE 5

/* Connects, or returns -1 with errno. The path may be longer than an address can be: its folder has
 * a short name while it is open. */
static int connected(const char *path)
{
    const struct timeval patience = {.tv_sec = PATIENCE};
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char folder[PATH_MAX], shorter[PATH_MAX];
    const char *slash = strrchr(path, '/');
    int fd, opened = -1, error;

    if (strlen(path) >= sizeof folder || (strlen(path) >= sizeof address.sun_path && !slash)) {
        errno = ENAMETOOLONG;
        return -1;
    }
    if (strlen(path) >= sizeof address.sun_path) {
        memcpy(folder, path, (size_t)(slash - path));
        folder[slash - path] = '\0';
        opened = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (opened < 0)
            return -1;
        snprintf(shorter, sizeof shorter, "/proc/self/fd/%d%.*s", opened, NAME_MAX, slash);
        path = shorter;
    }
    error = ENAMETOOLONG;
    fd = -1;
    if (strlen(path) < sizeof address.sun_path) {
        strcpy(address.sun_path, path);
        fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        if (fd != -1)
            setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        if (fd == -1 || connect(fd, (struct sockaddr *)&address, sizeof address)) {
            error = errno;
            if (fd != -1)
                close(fd);
            fd = -1;
        }
    }
    if (opened != -1)
        close(opened);
    errno = error;
    return fd;
}

/* The agent is root, or in local mode this user: no other user can put a socket in its place. */
static bool is_trusted(int fd)
{
    struct ucred peer;
    socklen_t size = sizeof peer;

    return !getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) &&
           (peer.uid == 0 || peer.uid == getuid());
}

/* The path that the environment names; NULL if it names none. *is_usual: PEDOS_SOCKET names what is
 * usual. */
static const char *named(void)
{
    static char beside[PATH_MAX];
    const char *path = getenv("PEDOS_CALL_SOCKET");
    size_t length;

    if (path && *path)
        return path;
    path = getenv("PEDOS_SOCKET");
    if (!path || !*path || !strcmp(path, USUAL_SERVICE))
        return NULL;
    length = strlen(path);
    if (length > strlen(SERVICE_ENDING) &&
        !strcmp(path + length - strlen(SERVICE_ENDING), SERVICE_ENDING))
        length -= strlen(SERVICE_ENDING);
    snprintf(beside, sizeof beside, "%.*s" CALLS_ENDING, (int)length, path);
    return beside;
}

int agent_connect(void)
{
    const char *path = named();
    int fd = -1;

    if (path)
        fd = connected(path);
    for (size_t i = 0; !path && i < sizeof USUAL / sizeof *USUAL; i++) {
        fd = connected(USUAL[i]);
        if (fd != -1 || errno != ENOENT)
            path = USUAL[i];
    }
    if (fd != -1 && is_trusted(fd))
        return fd;
    if (fd != -1) {
        say("the socket %s is that of another user's program, and not of this VM's agent", path);
        close(fd);
        return -1;
    }
    if (errno == EACCES || errno == EPERM) {
        say("%s: only root, and in dom0 the members of the group pedos, may call services here",
            path);
        return -1;
    }
    say("cannot reach this VM's agent at %s: %s", path ? path : USUAL[0],
        errno == EAGAIN ? "it takes no new connection" : strerror(errno));
    say_hint("systemctl status pedos-agent (in dom0: pedos-dom0-agent)");
    return -1;
}

bool agent_ask(int agent, const struct packet_call *call, const int descriptors[3])
{
    uint8_t bytes[PACKET_MAX];
    size_t count = packet_build_call(call, bytes);
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(3 * sizeof(int))];
    } control = {0};
    struct iovec part = {bytes, count};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);

    if (!count) {
        say("the call is no message");
        return false;
    }
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(3 * sizeof(int));
    memcpy(CMSG_DATA(header), descriptors, 3 * sizeof(int));
    /* What the agent has said already, as that it takes no more callers, is heard all the same. */
    if (sendmsg(agent, &message, MSG_NOSIGNAL) < 0 && errno != EPIPE && errno != ECONNRESET) {
        say("cannot ask this VM's agent: %s", strerror(errno));
        return false;
    }
    return true;
}

bool agent_hear(int agent, struct packet_answer *answer)
{
    uint8_t bytes[PACKET_MAX + 1];
    ssize_t count;

    /* ECONNRESET comes once, before what the agent has said: it has ended the connection with a
     * signal of ours unread, which came too late for the call. */
    do {
        count = recv(agent, bytes, sizeof bytes, 0);
    } while (count < 0 && (errno == EINTR || errno == ECONNRESET));
    return count > 0 && packet_parse(answer, bytes, (size_t)count);
}

void agent_signal(int agent, uint8_t number)
{
    uint8_t bytes[PACKET_MAX];
    size_t count = packet_build_signal(number, bytes);

    /* An agent that has gone says so by itself. */
    if (send(agent, bytes, count, MSG_NOSIGNAL) < 0)
        return;
}

void agent_hang_up(int agent)
{
    shutdown(agent, SHUT_WR);
}
