/* qvm-call: calls a service of another VM. See --help. */
#include "agent.h"
#include "clock.h"
#include "complete.h"
#include "local.h"
#include "names.h"
#include "options.h"
#include "packet.h"
#include "say.h"
#include "status.h"
#include "streams.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

/* Milliseconds in which this program hears of a start that has happened. The agent tells it together
 * with the next word, or 5 ms later (PV_CREW_LAZY_MS), and a busy machine somewhat later than that;
 * a person who ends this program before does not notice the delay. */
#define START_PATIENCE 100

/* The service by which dom0's qvm-run runs commands, and what brings it. */
#define SHELL "qubes.VMShell"
#define SHELL_HINT "in that VM or its template: apt install ./pedos-qrexec_*.deb"

struct call {
    struct options options;
    struct streams streams;
    struct local local;
    struct status status;
    struct packet_answer end;
    int agent;
    int signals; /* those to be passed on; -1: they do here what they do */
    int early;   /* a signal that came before the start was heard of; 0: none */
    long early_until;                        /* how long the start is waited for, in ms */
    bool has_started, has_ended, has_failed; /* failed: something on this side has */
    bool has_hung_up;
};

/* Something on this side has failed, so that the call cannot be what it should: it is to end. */
static void fail(struct call *call)
{
    call->has_failed = call->has_hung_up = true;
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

/* Before and after a call the ending ones do here what they do. From its begin they come as something
 * to read, and with a service that can have them so do the others, which wait for its start, and have
 * no effect after its end. */
enum phase { OUTSIDE, ASKED, SERVED };

static bool catch_signals(struct call *call, enum phase phase)
{
    const sigset_t all = ending_signals(true), ending = ending_signals(false);

    if (!call->options.forwards_signals)
        return true;
    call->signals =
        signalfd(call->signals, phase == SERVED ? &all : &ending, SFD_CLOEXEC | SFD_NONBLOCK);
    if (call->signals != -1 && !sigprocmask(SIG_BLOCK, &all, NULL) &&
        (phase != OUTSIDE || !sigprocmask(SIG_UNBLOCK, &ending, NULL)))
        return true;
    say("--forward-signals: %s", strerror(errno));
    return false;
}

/* The next signal that has come; 0 if none has. */
static int take_signal(const struct call *call)
{
    struct signalfd_siginfo one;

    return read(call->signals, &one, sizeof one) == sizeof one ? (int)one.ssi_signo : 0;
}

/* Before the start is heard of, the service may run already: what it has written says so to others
 * before the agent says it here. */
static void look_at_signal(struct call *call)
{
    const int number = take_signal(call);

    if (!number)
        return;
    if (call->has_started) {
        agent_signal(call->agent, (uint8_t)number);
    } else {
        call->early = number;
        call->early_until = clock_now() + START_PATIENCE;
    }
}

/* No service has started in time: the signal does here what it does, unless it is ignored. */
static void look_at_early(struct call *call)
{
    sigset_t one;

    if (!call->early || clock_now() < call->early_until)
        return;
    sigemptyset(&one);
    sigaddset(&one, call->early);
    raise(call->early);
    sigprocmask(SIG_UNBLOCK, &one, NULL);
    sigprocmask(SIG_BLOCK, &one, NULL);
    call->early = 0;
}

/* The agent has closed its ends of all three streams: what we still copy has an end. */
static void end(struct call *call)
{
    call->has_ended = true;
    call->early = 0;
    while (call->signals != -1 && take_signal(call))
        ; /* they came before the end, and are not to end what is left to be done */
    if (!catch_signals(call, OUTSIDE))
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
    if (answer.type == PACKET_STARTED) {
        call->has_started = true;
        status_started(&call->status, &answer);
        if (call->early)
            agent_signal(call->agent, (uint8_t)call->early);
        call->early = 0;
        if (!catch_signals(call, SERVED))
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
    enum { AGENT, LOCAL, SIGNALS, STATUS, COPIES };
    struct pollfd wait[COPIES + 2 * STREAMS];

    while (!is_over(call)) {
        const bool has_signals = !call->has_ended && !call->early;
        const long left = call->early ? call->early_until - clock_now() : -1;

        wait[AGENT] = (struct pollfd){.fd = call->has_ended ? -1 : call->agent, .events = POLLIN};
        wait[LOCAL] = (struct pollfd){.fd = call->local.pidfd, .events = POLLIN};
        wait[SIGNALS] = (struct pollfd){.fd = has_signals ? call->signals : -1, .events = POLLIN};
        status_wait(&call->status, wait + STATUS);
        for (int stream = 0; stream < STREAMS; stream++) {
            struct pollfd *two = wait + COPIES + 2 * stream;

            two[0].fd = two[1].fd = -1;
            if (call->streams.copies[stream])
                copy_wait(call->streams.copies[stream], two);
        }
        if (poll(wait, sizeof wait / sizeof *wait, call->early && left < 0 ? 0 : (int)left) < 0) {
            if (errno == EINTR)
                continue;
            say("poll: %s", strerror(errno));
            call->has_failed = true;
            return;
        }
        for (int stream = 0; stream < STREAMS; stream++) {
            if (!call->streams.copies[stream])
                continue;
            copy_go_on(call->streams.copies[stream], wait + COPIES + 2 * stream);
            look_at_copy(call, stream);
        }
        if (wait[LOCAL].revents)
            local_ended(&call->local);
        if (wait[STATUS].revents)
            status_go_on(&call->status);
        if (wait[SIGNALS].revents)
            look_at_signal(call);
        if (wait[AGENT].revents)
            hear(call);
        look_at_early(call);
    }
}

static int exit_status(const struct call *call)
{
    int status = call->end.exit_status;

    if (!status && call->has_failed)
        status = SAY_FAILED;
    return status ? status : call->local.exit_status;
}

/* Says how it has ended. Returns the exit status. */
static int conclude(struct call *call)
{
    struct packet_answer *end = &call->end;
    int status;

    if (!call->has_ended) { /* this side could not ask, or listen */
        *end = (struct packet_answer){.kind = PACKET_PROBLEM, .exit_status = SAY_FAILED};
        call->has_failed = true;
    }
    /* That it was aborted is our own doing, and what was said before is the cause. */
    if (call->has_hung_up && end->kind == PACKET_ABORTED)
        *end->text = *end->rule = *end->hint = '\0';
    if (end->kind == PACKET_NOT_FOUND && !*end->hint && !strcmp(call->options.service, SHELL))
        snprintf(end->hint, sizeof end->hint, "%s", SHELL_HINT);
    status = exit_status(call);
    status_say(end);
    if (call->has_failed && !*end->text) {
        snprintf(end->text, sizeof end->text, "%s", say_first());
        snprintf(end->hint, sizeof end->hint, "%s", say_first_hint());
    }
    status_ended(&call->status, end, status);
    status_finish(&call->status);
    return status;
}

static bool ask(struct call *call)
{
    struct packet_call asked = {
        .is_last = true,
        .target = call->options.target,
        .service = call->options.service,
        .argument = call->options.argument,
        .user = call->options.user,
    };

    if (!names_check(&asked) || !streams_open(&call->streams, &call->options))
        return false;
    call->agent = agent_connect();
    asked.may_shut_down = call->streams.may_shut_down;
    return call->agent != -1 && catch_signals(call, ASKED) &&
           agent_ask(call->agent, &asked, call->streams.for_agent);
}

int main(int argc, char **argv)
{
    static struct call call = {.local = {.pidfd = -1}, .signals = -1};

    if (complete())
        return 0;
    say_as(argv[0]);
    options_parse(&call.options, argc, argv);
    call.status.fd = call.options.status_fd;
    signal(SIGPIPE, SIG_IGN);
    if (!catch_signals(&call, OUTSIDE) || !ask(&call))
        return conclude(&call);
    streams_handed_over(&call.streams, &call.options);
    run(&call);
    return conclude(&call);
}
