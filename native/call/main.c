/* qvm-call: calls a service of another VM. See --help. */
#include "agent.h"
#include "complete.h"
#include "local.h"
#include "options.h"
#include "packet.h"
#include "say.h"
#include "status.h"
#include "streams.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

struct call {
    struct options options;
    struct streams streams;
    struct local local;
    struct packet_answer end;
    int agent;
    int signals; /* those to be passed on; -1: they do here what they do */
    bool has_started, has_ended, has_failed; /* failed: something on this side has */
};

/* Something on this side has failed, so that the call cannot be what it should: it is to end. */
static void fail(struct call *call)
{
    call->has_failed = true;
    agent_hang_up(call->agent);
    for (int i = 0; i < 2; i++)
        if (call->streams.for_local[i] != -1)
            close(call->streams.for_local[i]);
    call->streams.for_local[0] = call->streams.for_local[1] = -1;
}

static void start_local(struct call *call)
{
    int *descriptors = call->streams.for_local;

    if (!call->options.local || descriptors[0] == -1)
        return;
    if (!local_start(&call->local, call->options.local, descriptors))
        fail(call);
    else
        descriptors[0] = descriptors[1] = -1;
}

/* Those by which a person ends a program, and those that say something to the service alone. */
static sigset_t ending_signals(bool and_others)
{
    static const int SIGNALS[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    static const int OTHERS[] = {SIGUSR1, SIGUSR2, SIGWINCH};
    sigset_t set;

    sigemptyset(&set);
    for (size_t i = 0; i < sizeof SIGNALS / sizeof *SIGNALS; i++)
        sigaddset(&set, SIGNALS[i]);
    for (size_t i = 0; and_others && i < sizeof OTHERS / sizeof *OTHERS; i++)
        sigaddset(&set, OTHERS[i]);
    return set;
}

/* With a service that can have them, signals come as something to read. Before and after that some
 * end this program; others wait for its start, and have no effect after its end. */
static bool catch_signals(struct call *call, bool has_service)
{
    const sigset_t all = ending_signals(true), ending = ending_signals(false);

    if (!call->options.forwards_signals)
        return true;
    if (call->signals == -1)
        call->signals = signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK);
    if (call->signals != -1 && !sigprocmask(SIG_BLOCK, &all, NULL) &&
        (has_service || !sigprocmask(SIG_UNBLOCK, &ending, NULL)))
        return true;
    say("--forward-signals: %s", strerror(errno));
    return false;
}

static bool pass_signal_on(const struct call *call)
{
    struct signalfd_siginfo one;

    if (read(call->signals, &one, sizeof one) != sizeof one)
        return false;
    agent_signal(call->agent, (uint8_t)one.ssi_signo);
    return true;
}

/* The agent has closed its ends of all three streams: what we still copy has an end. */
static void end(struct call *call)
{
    call->has_ended = true;
    while (call->signals != -1 && pass_signal_on(call))
        ; /* they came before the end, and are not to end what is left to be done */
    if (!catch_signals(call, false))
        call->has_failed = true;
    if (call->streams.copies[STREAM_INPUT])
        copy_stop(call->streams.copies[STREAM_INPUT]);
}

static void hear(struct call *call)
{
    struct packet_answer answer;

    if (!agent_hear(call->agent, &answer)) {
        answer = (struct packet_answer){
            .type = PACKET_ENDED,
            .kind = PACKET_LOST,
            .exit_status = SAY_FAILED,
            .text = "this VM's agent has gone away, and the call with it",
            .hint = "systemctl status pedos-agent (in dom0: pedos-dom0-agent)",
        };
    }
    status_write(call->options.status_fd, &answer);
    if (answer.type == PACKET_STARTED) {
        call->has_started = true;
        if (!catch_signals(call, true))
            fail(call);
        start_local(call);
    } else {
        call->end = answer;
        end(call);
    }
}

static void look_at_copy(struct call *call, int stream)
{
    static const char *const WHAT[] = {"cannot read standard input", "cannot write standard output",
                                       "cannot write standard error"};
    struct copy *copy = call->streams.copies[stream];
    int error = stream == STREAM_INPUT ? copy->read_error : copy->write_error;

    if (!error)
        return;
    copy->read_error = copy->write_error = 0;
    say("%s: %s", WHAT[stream], strerror(error));
    /* The service must not take what has come so far for everything. */
    if (stream == STREAM_INPUT)
        fail(call);
    call->has_failed = true;
}

static bool is_over(const struct call *call)
{
    for (int stream = STREAM_OUTPUT; stream < STREAMS; stream++)
        if (call->streams.copies[stream] && !copy_is_over(call->streams.copies[stream]))
            return false;
    return call->has_ended && call->local.pidfd == -1;
}

/* Until the agent has said how it ended, all output is written, and the local program has ended. */
static void run(struct call *call)
{
    struct pollfd wait[3 + 2 * STREAMS];

    while (!is_over(call)) {
        const bool is_served = call->has_started && !call->has_ended;

        wait[0] = (struct pollfd){.fd = call->has_ended ? -1 : call->agent, .events = POLLIN};
        wait[1] = (struct pollfd){.fd = call->local.pidfd, .events = POLLIN};
        wait[2] = (struct pollfd){.fd = is_served ? call->signals : -1, .events = POLLIN};
        for (int stream = 0; stream < STREAMS; stream++) {
            struct pollfd *two = wait + 3 + 2 * stream;

            two[0].fd = two[1].fd = -1;
            if (call->streams.copies[stream])
                copy_wait(call->streams.copies[stream], two);
        }
        if (poll(wait, sizeof wait / sizeof *wait, -1) < 0) {
            if (errno == EINTR)
                continue;
            say("poll: %s", strerror(errno));
            call->has_failed = true;
            return;
        }
        for (int stream = 0; stream < STREAMS; stream++) {
            if (!call->streams.copies[stream])
                continue;
            copy_go_on(call->streams.copies[stream], wait + 3 + 2 * stream);
            look_at_copy(call, stream);
        }
        if (wait[1].revents)
            local_ended(&call->local);
        if (wait[2].revents)
            pass_signal_on(call);
        if (wait[0].revents)
            hear(call);
    }
}

static int exit_status(const struct call *call)
{
    int status = call->end.exit_status;

    if (!status && call->has_failed)
        status = SAY_FAILED;
    return status ? status : call->local.exit_status;
}

int main(int argc, char **argv)
{
    static struct call call = {.local = {.pidfd = -1}, .signals = -1};
    struct packet_call asked;

    if (complete())
        return 0;
    say_as(argv[0]);
    options_parse(&call.options, argc, argv);
    signal(SIGPIPE, SIG_IGN);
    if (!catch_signals(&call, false) || !streams_open(&call.streams, &call.options))
        return SAY_FAILED;
    call.agent = agent_connect();
    if (call.agent == -1)
        return SAY_FAILED;
    asked = (struct packet_call){
        .may_shut_down = call.streams.may_shut_down,
        .is_last = true,
        .target = call.options.target,
        .service = call.options.service,
        .argument = call.options.argument,
        .user = call.options.user,
    };
    if (!agent_ask(call.agent, &asked, call.streams.for_agent))
        return SAY_FAILED;
    streams_handed_over(&call.streams, &call.options);
    run(&call);
    status_say(&call.end);
    return exit_status(&call);
}
