#include "session.h"

#include "borrowed.h"
#include "clock.h"
#include "lent.h"
#include "log.h"
#include "target_pulse.h"
#include "text.h"
#include "timing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Streams of one connection: a machine has fewer VMs that run, and few microphones. */
#define STREAMS_MAX 64u
/* A sound server that restarts answers again within this time, and has its microphones again within
 * this time after that; or they are lost. */
#define GRACE_MS 10000
/* The sound server has so long to take what this program gives back at its end. */
#define STOP_MS 1000
#define STOPPING "pedos-sound ends: the user logs out, or it is restarted"

struct session {
    struct host host;
    struct lent *lent[STREAMS_MAX];
    struct borrowed *borrowed[STREAMS_MAX];
    bool is_welcome, is_stopping;
    char state[LINK_LINE_MAX + 1]; /* of the sound server: why there is none, or "" */
    bool is_graced;                /* the server is gone or was just now */
    bool is_listed;                /* the list of devices means something */
    struct clock_timer grace, sweep, stop;
    void (*done)(void *context);
    void *done_context;
};

/* --- What the agent is told --- */

static void tell_state(struct session *session)
{
    struct link_message message = {.type = LINK_SERVER};

    strcpy(message.line, session->state);
    if (session->is_welcome)
        agent_send(session->host.agent, &message);
}

static void tell_devices(struct session *session)
{
    struct link_message message = {.type = LINK_DEVICES};

    message.devices = sources_list(session->host.sources, &message.count);
    if (session->is_welcome && session->is_listed)
        agent_send(session->host.agent, &message);
}

/* --- Streams --- */

static void sweep(void *context)
{
    struct session *session = context;

    for (unsigned i = 0; i < STREAMS_MAX; i++) {
        if (session->lent[i] && lent_is_over(session->lent[i])) {
            lent_free(session->lent[i]);
            session->lent[i] = NULL;
        }
        if (session->borrowed[i] && borrowed_is_over(session->borrowed[i])) {
            borrowed_free(session->borrowed[i]);
            session->borrowed[i] = NULL;
        }
    }
}

static void over(void *context)
{
    struct session *session = context;

    clock_timer_set(&session->sweep, clock_now());
}

/* The streams' name in the sound server: "Microphone for work, mail". */
static void listeners_changed(void *context, struct recording *recording)
{
    struct session *session = context;
    char title[LINK_LINE_MAX + 1];
    size_t used = (size_t)snprintf(title, sizeof title, "Microphone for ");
    bool is_first = true;

    for (unsigned i = 0; i < STREAMS_MAX; i++) {
        const struct lent *lent = session->lent[i];

        if (!lent || lent_recording(lent) != recording)
            continue;
        if (used + LINK_VM_MAX + 8 > sizeof title) {
            snprintf(title + used, sizeof title - used, "...");
            break;
        }
        used += (size_t)snprintf(title + used, sizeof title - used, "%s%s", is_first ? "" : ", ",
                                 lent_vm(lent));
        is_first = false;
    }
    recording_rename(recording, title);
}

static bool has_id(const struct session *session, uint32_t id)
{
    for (unsigned i = 0; i < STREAMS_MAX; i++)
        if ((session->lent[i] && lent_id(session->lent[i]) == id) ||
            (session->borrowed[i] && borrowed_id(session->borrowed[i]) == id))
            return true;
    return false;
}

static void refuse(struct session *session, uint32_t id, int fd, const char *why)
{
    host_tell(&session->host, LINK_FAILED, id, false, why);
    close(fd);
}

static void lend(struct session *session, const struct link_message *message, int fd)
{
    struct lent **place = session->lent;

    while (place < session->lent + STREAMS_MAX && *place)
        place++;
    if (place == session->lent + STREAMS_MAX) {
        refuse(session, message->id, fd, "too many microphones are lent");
        return;
    }
    *place = lent_new(&session->host, message, fd);
    if (!*place)
        refuse(session, message->id, fd, "out of memory");
}

static void borrow(struct session *session, const struct link_message *message, int fd)
{
    struct borrowed **place = session->borrowed;

    while (place < session->borrowed + STREAMS_MAX && *place)
        place++;
    if (place == session->borrowed + STREAMS_MAX) {
        refuse(session, message->id, fd, "too many microphones are borrowed");
        return;
    }
    *place = borrowed_new(&session->host, message, fd);
    if (!*place)
        refuse(session, message->id, fd, "out of memory");
}

static void begin(struct session *session, const struct link_message *message, int fd)
{
    if (has_id(session, message->id)) {
        close(fd);
        agent_breach(session->host.agent, "an id that is in use");
    } else if (session->is_stopping) {
        refuse(session, message->id, fd, STOPPING);
    } else if (*session->state) {
        refuse(session, message->id, fd, session->state);
    } else if (message->type == LINK_BORROW) {
        borrow(session, message, fd);
    } else if (!sources_has(session->host.sources, message->device, message->identity)) {
        refuse(session, message->id, fd, "there is no such microphone any more");
    } else {
        lend(session, message, fd);
    }
}

/* What is about a stream that ended meanwhile has no effect. */
static void act_on(struct session *session, const struct link_message *message)
{
    for (unsigned i = 0; i < STREAMS_MAX; i++) {
        struct lent *lent = session->lent[i];
        struct borrowed *borrowed = session->borrowed[i];

        if (lent && lent_id(lent) == message->id) {
            if (message->type == LINK_MUTE)
                lent_mute(lent, message->flag);
            else
                lent_end(lent, "");
        }
        if (borrowed && borrowed_id(borrowed) == message->id && message->type == LINK_CLOSE)
            borrowed_end(borrowed, "");
    }
}

/* --- The agent --- */

static void welcome(void *context)
{
    struct session *session = context;

    session->is_welcome = true;
    tell_state(session);
    tell_devices(session);
}

static void heard_message(void *context, const struct link_message *message, int fd)
{
    struct session *session = context;

    if (fd != -1)
        begin(session, message, fd);
    else
        act_on(session, message);
}

static void end_all(struct session *session, const char *why)
{
    for (unsigned i = 0; i < STREAMS_MAX; i++) {
        if (session->lent[i])
            lent_end(session->lent[i], why);
        if (session->borrowed[i])
            borrowed_end(session->borrowed[i], why);
    }
    sweep(session);
}

static void lost_agent(void *context)
{
    struct session *session = context;

    session->is_welcome = false;
    end_all(session, "the agent is gone");
}

/* --- The sound server --- */

static bool has_all_lent(const struct session *session)
{
    for (unsigned i = 0; i < STREAMS_MAX; i++)
        if (session->lent[i] && !lent_is_there(session->lent[i]))
            return false;
    return true;
}

static void end_what_is_gone(struct session *session)
{
    for (unsigned i = 0; i < STREAMS_MAX; i++) {
        if (session->lent[i] && !lent_is_there(session->lent[i]))
            lent_end(session->lent[i], *session->state ? session->state
                                                       : "the microphone was unplugged");
        if (session->borrowed[i] && *session->state)
            borrowed_end(session->borrowed[i], session->state);
    }
}

static void devices_changed(void *context)
{
    struct session *session = context;

    /* A server that has just started may not have found all of its microphones yet. */
    if (session->is_graced && !has_all_lent(session))
        return;
    session->is_graced = false;
    clock_timer_set(&session->grace, NEVER);
    session->is_listed = true;
    tell_devices(session);
    end_what_is_gone(session);
    for (unsigned i = 0; i < STREAMS_MAX; i++)
        if (session->lent[i])
            lent_update(session->lent[i]);
}

static void sources_looked(void *context)
{
    struct session *session = context;

    recordings_try(session->host.recordings);
    for (unsigned i = 0; i < STREAMS_MAX; i++)
        if (session->borrowed[i])
            borrowed_listed(session->borrowed[i]);
}

static void grace_is_over(void *context)
{
    struct session *session = context;

    session->is_graced = false;
    if (*session->state)
        sources_forget(session->host.sources);
    devices_changed(session);
}

static void server_up(void *context)
{
    struct session *session = context;
    pa_context *pulse = server_context(session->host.server);

    session->state[0] = '\0';
    if (session->is_graced)
        clock_timer_set(&session->grace, clock_now() + GRACE_MS);
    tell_state(session);
    target_pulse_clean(pulse);
    recordings_use(session->host.recordings, pulse);
    sources_use(session->host.sources, pulse);
    for (unsigned i = 0; i < STREAMS_MAX; i++)
        if (session->borrowed[i])
            borrowed_server_up(session->borrowed[i]);
}

static void server_lost(void *context, const char *why)
{
    struct session *session = context;

    snprintf(session->state, sizeof session->state, "no sound server answers (%.200s)", why);
    tell_state(session);
    recordings_use(session->host.recordings, NULL);
    sources_use(session->host.sources, NULL);
    if (session->is_listed && !session->is_graced) {
        session->is_graced = true;
        clock_timer_set(&session->grace, clock_now() + GRACE_MS);
    }
    for (unsigned i = 0; i < STREAMS_MAX; i++) {
        if (session->borrowed[i])
            borrowed_server_lost(session->borrowed[i]);
        if (session->lent[i])
            lent_update(session->lent[i]);
    }
}

static void server_changed(void *context, pa_subscription_event_type_t what)
{
    struct session *session = context;

    if (what == PA_SUBSCRIPTION_EVENT_SOURCE_OUTPUT || what == PA_SUBSCRIPTION_EVENT_SOURCE)
        target_pulse_look();
    if (what != PA_SUBSCRIPTION_EVENT_SOURCE_OUTPUT)
        sources_look(session->host.sources);
}

static void recording_turned(void *context, struct recording *recording)
{
    struct session *session = context;

    for (unsigned i = 0; i < STREAMS_MAX; i++)
        if (session->lent[i] && lent_recording(session->lent[i]) == recording)
            lent_update(session->lent[i]);
}

static void heard(void *context, struct recording *recording, const int16_t *samples, size_t count)
{
    struct session *session = context;

    for (unsigned i = 0; i < STREAMS_MAX; i++)
        if (session->lent[i] && lent_recording(session->lent[i]) == recording)
            lent_hear(session->lent[i], samples, count);
}

/* --- Beginning and end --- */

static void stopped(void *context)
{
    struct session *session = context;
    void (*done)(void *) = session->done;

    session->done = NULL;
    if (done)
        done(session->done_context);
}

static const struct agent_events AGENT = {welcome, heard_message, lost_agent};
static const struct server_events SERVER = {server_up, server_lost, server_changed};
static const struct sources_events SOURCES = {devices_changed, sources_looked};
static const struct recordings_events RECORDINGS = {recording_turned, heard};

struct session *session_new(pa_mainloop_api *loop, const char *path)
{
    struct session *session = calloc(1, sizeof *session);

    if (!session)
        return NULL;
    strcpy(session->state, "no sound server answers yet");
    clock_timer_init(&session->grace, loop, grace_is_over, session);
    clock_timer_init(&session->sweep, loop, sweep, session);
    clock_timer_init(&session->stop, loop, stopped, session);
    session->host = (struct host){.loop = loop,
                                  .listeners_changed = listeners_changed,
                                  .over = over,
                                  .context = session};
    session->host.sources = sources_new(loop, &SOURCES, session);
    session->host.recordings = recordings_new(loop, &RECORDINGS, session);
    session->host.server = server_new(loop, &SERVER, session);
    session->host.agent = agent_new(loop, path, &AGENT, session);
    if (!session->host.sources || !session->host.recordings || !session->host.server ||
        !session->host.agent)
        return NULL;
    return session;
}

static void drained(void *context)
{
    stopped(context);
}

void session_stop(struct session *session, void (*done)(void *context), void *context)
{
    session->done = done;
    session->done_context = context;
    session->is_stopping = true;
    end_all(session, STOPPING);
    clock_timer_set(&session->stop, clock_now() + STOP_MS);
    server_drain(session->host.server, drained);
}

void session_free(struct session *session)
{
    lost_agent(session);
    agent_free(session->host.agent);
    recordings_free(session->host.recordings);
    sources_free(session->host.sources);
    server_free(session->host.server);
    clock_timer_free(&session->grace);
    clock_timer_free(&session->sweep);
    clock_timer_free(&session->stop);
    free(session);
}
