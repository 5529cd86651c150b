#include "streams.h"

#include "say.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *const NAMES[] = {"standard input", "standard output", "standard error"};

static bool failed(const char *what)
{
    say("%s: %s", what, strerror(errno));
    return false;
}

/* Descriptors 0 to 2 exist, so that nothing else gets their numbers. */
static bool fill_gaps(void)
{
    for (int fd = 0; fd < STREAMS; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd ? O_WRONLY : O_RDONLY) != fd)
            return failed("/dev/null");
    return true;
}

static bool is_stream_socket(int fd)
{
    int type = 0, listens = 0;
    socklen_t size = sizeof type;

    return !getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) && type == SOCK_STREAM &&
           !getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) && !listens;
}

/* Whether the agent can be given a descriptor. The wrong end of a pipe is left to read(2) or
 * write(2) here, which say what is wrong with it. */
static bool can_be_handed_over(int fd, int stream)
{
    struct stat status;
    int mode = fcntl(fd, F_GETFL);

    if (mode < 0 || mode & O_PATH || fstat(fd, &status))
        return false;
    if (S_ISSOCK(status.st_mode))
        return is_stream_socket(fd);
    mode &= O_ACCMODE;
    return S_ISFIFO(status.st_mode) && mode != (stream == STREAM_INPUT ? O_WRONLY : O_RDONLY);
}

/* A copy between `ours` (taken over) and a new pipe, whose other end is for the agent. */
static bool copied(struct streams *streams, int stream, int ours, const char *prefix, bool filters)
{
    const bool reads = stream == STREAM_INPUT;
    int ends[2];

    if (pipe2(ends, O_CLOEXEC))
        return failed("a pipe");
    /* Ours alone does not block: the flag belongs to each end. */
    if (fcntl(ends[reads], F_SETFL, O_NONBLOCK) < 0)
        return failed("a pipe");
    streams->for_agent[stream] = ends[!reads];
    streams->copies[stream] = reads ? copy_new(ours, ends[1], prefix, false)
                                    : copy_new(ends[0], ours, "", filters);
    return streams->copies[stream] || failed(*prefix ? "--prefix-data" : NAMES[stream]);
}

/* A descriptor of this program for one stream: handed over as it is, or copied. */
static bool connect_own(struct streams *streams, int stream, int fd, const char *prefix,
                        bool filters)
{
    int ours;

    if (!*prefix && !filters && can_be_handed_over(fd, stream)) {
        streams->for_agent[stream] = fcntl(fd, F_DUPFD_CLOEXEC, STREAMS);
        return streams->for_agent[stream] != -1 || failed(NAMES[stream]);
    }
    ours = fcntl(fd, F_DUPFD_CLOEXEC, STREAMS);
    return ours == -1 ? failed(NAMES[stream]) : copied(streams, stream, ours, prefix, filters);
}

/* Two pairs of sockets: the local program writes into one and reads from the other. */
static bool connect_local(struct streams *streams, const struct options *options)
{
    const ssize_t length = (ssize_t)strlen(options->prefix);
    int to_service[2], from_service[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, to_service) ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, from_service))
        return failed("a pair of sockets");
    streams->for_local[1] = to_service[0];
    streams->for_local[0] = from_service[0];
    streams->for_agent[STREAM_INPUT] = to_service[1];
    streams->may_shut_down = true;
    /* It fits into the socket before anything reads there. */
    if (length && send(to_service[0], options->prefix, (size_t)length, MSG_DONTWAIT) != length)
        return failed("--prefix-data");
    if (options->filters_stdout)
        return copied(streams, STREAM_OUTPUT, from_service[1], "", true);
    streams->for_agent[STREAM_OUTPUT] = from_service[1];
    return true;
}

bool streams_open(struct streams *streams, const struct options *options)
{
    *streams = (struct streams){.for_agent = {-1, -1, -1}, .for_local = {-1, -1}};
    if (!fill_gaps() ||
        !connect_own(streams, STREAM_ERROR, STREAM_ERROR, "", options->filters_stderr))
        return false;
    if (options->local)
        return connect_local(streams, options);
    if (options->uses_stdin_socket && !is_stream_socket(STREAM_INPUT)) {
        say("--use-stdin-socket: standard input is not a stream socket");
        return false;
    }
    streams->may_shut_down = options->uses_stdin_socket;
    return connect_own(streams, STREAM_INPUT, STREAM_INPUT, options->prefix, false) &&
           connect_own(streams, STREAM_OUTPUT,
                       options->uses_stdin_socket ? STREAM_INPUT : STREAM_OUTPUT, "",
                       options->filters_stdout);
}

void streams_handed_over(struct streams *streams, const struct options *options)
{
    int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);

    for (int stream = 0; stream < STREAMS; stream++)
        close(streams->for_agent[stream]);
    /* The local program still gets both. Standard error stays for what this program has to say. */
    if (nothing == -1 || options->local)
        return;
    dup2(nothing, STREAM_INPUT);
    dup2(nothing, STREAM_OUTPUT);
    close(nothing);
}
