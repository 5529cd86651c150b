#include "sources.h"

#include "clock.h"
#include "log.h"
#include "server.h"
#include "text.h"
#include "timing.h"

#include <pulse/introspect.h>
#include <pulse/proplist.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* pipewire-pulse (0.3.65) names an unplugged source, or a monitor, as the default when it says that
 * something has changed, and on a busy machine says nothing when it names another. So while none of
 * the microphones is the default it is asked again: soon, some times, and then for as long as that
 * lasts, as what is lent as the user's choice is silent meanwhile. So it is when it did not answer. */
#define ASK_AGAIN_MS 250
#define ASK_AGAIN_TIMES 20
#define ASK_AGAIN_MS_RARELY 5000
/* One is the user's choice. */
#define MICROPHONES_MAX (LINK_DEVICES_MAX - 1)
/* As many as a session borrows at once. */
#define OFFERED_MAX 64

struct list {
    unsigned count;
    char names[MICROPHONES_MAX][SOURCE_NAME_MAX + 1];
    struct link_device devices[LINK_DEVICES_MAX]; /* the user's choice last */
    unsigned devices_count;
};

/* Borrowed microphones that the server has. */
struct offered {
    unsigned count;
    char names[OFFERED_MAX][SOURCE_NAME_MAX + 1];
};

struct sources {
    const struct sources_events *events;
    void *context;
    pa_context *pulse;
    struct list now, next; /* next: while the server tells */
    struct offered offered, offered_next;
    char default_name[SOURCE_NAME_MAX + 1];
    bool is_looking, is_stale, is_known, is_cut;
    unsigned asked_again;
    struct clock_timer again;
};

static void look(struct sources *sources);

/* Are there microphones, and is none of them the default? */
static bool lacks_choice(const struct list *list)
{
    for (unsigned i = 0; i < list->count; i++)
        if (list->devices[i].is_default)
            return false;
    return list->count > 0;
}

/* A longer name than any that servers make is nobody's. */
static bool is_usable(const pa_source_info *info)
{
    return info->name && strlen(info->name) <= SOURCE_NAME_MAX;
}

static bool is_borrowed(const pa_source_info *info)
{
    return strncmp(info->name, BORROWED_PREFIX, strlen(BORROWED_PREFIX)) == 0;
}

static bool is_microphone(const pa_source_info *info)
{
    return is_usable(info) && info->monitor_of_sink == PA_INVALID_INDEX && !is_borrowed(info);
}

/* What tells this piece of hardware from another: where it is plugged in, what it says it is, and
 * which of its recording devices this is (a laptop's own microphone and its headset's are of one
 * card). A source without hardware is what it is called. */
static void identify(char *identity, const pa_source_info *info)
{
    static const char *const KEYS[] = {PA_PROP_DEVICE_BUS_PATH, PA_PROP_DEVICE_VENDOR_ID,
                                       PA_PROP_DEVICE_PRODUCT_ID, PA_PROP_DEVICE_SERIAL,
                                       "alsa.device"};
    const size_t count = sizeof KEYS / sizeof *KEYS;
    char all[1200] = "";
    size_t used = 0;
    bool is_hardware = false;

    for (size_t i = 0; i < count; i++) {
        const char *value = info->proplist ? pa_proplist_gets(info->proplist, KEYS[i]) : NULL;

        /* The number alone is the same for the first device of every card. */
        is_hardware |= value && i < count - 1;
        used += (size_t)snprintf(all + used, sizeof all - used, "%s%.200s", i ? ":" : "hw:",
                                 value ? value : "");
    }
    text_to_word(identity, LINK_IDENTITY_MAX, is_hardware ? all : info->name, ":._-");
}

static void add_device(struct list *list, const pa_source_info *info)
{
    struct link_device *device = &list->devices[list->count];
    /* The id of the user's choice is not free. */
    const char *name = strcmp(info->name, LINK_DEFAULT_DEVICE) ? info->name : "mic ";

    strcpy(list->names[list->count], info->name);
    text_to_word(device->id, LINK_DEVICE_MAX, name, "._-");
    identify(device->identity, info);
    text_to_line(device->description, LINK_DESCRIPTION_MAX,
                 info->description ? info->description : info->name);
    device->is_default = false;
    for (unsigned i = 0; i < list->count; i++)
        if (!strcmp(list->devices[i].id, device->id))
            return; /* the server has two of one name: the first is meant */
    list->count++;
}

/* The user's choice is there as long as there is a microphone to choose. */
static void add_choice(struct list *list, const char *default_name)
{
    struct link_device *choice = &list->devices[list->count];

    list->devices_count = list->count;
    if (!list->count)
        return;
    *choice = (struct link_device){.id = LINK_DEFAULT_DEVICE,
                                   .identity = LINK_DEFAULT_IDENTITY,
                                   .description = "No microphone is the default source",
                                   .is_default = true};
    for (unsigned i = 0; i < list->count; i++) {
        if (strcmp(list->names[i], default_name) != 0)
            continue;
        list->devices[i].is_default = true;
        strcpy(choice->description, list->devices[i].description);
    }
    list->devices_count++;
}

static void looked(struct sources *sources)
{
    bool is_new;

    add_choice(&sources->next, sources->default_name);
    /* Unused parts are zero in both. */
    is_new = !sources->is_known || memcmp(&sources->now, &sources->next, sizeof sources->now) != 0;
    sources->now = sources->next;
    sources->offered = sources->offered_next;
    sources->is_known = true;
    if (is_new)
        sources->events->changed(sources->context);
    sources->events->looked(sources->context);
}

/* One that does not fit counts as there, see sources_offer. */
static void add_offered(struct offered *offered, const char *name)
{
    if (offered->count < OFFERED_MAX)
        strcpy(offered->names[offered->count++], name);
}

static void listed(pa_context *pulse, const pa_source_info *info, int end, void *context)
{
    struct sources *sources = context;

    if (pulse != sources->pulse)
        return;
    if (!end) {
        if (is_usable(info) && is_borrowed(info))
            add_offered(&sources->offered_next, info->name);
        if (!is_microphone(info))
            return;
        if (sources->next.count < MICROPHONES_MAX)
            add_device(&sources->next, info);
        else if (!sources->is_cut)
            log_warning("more than %u microphones: the others are not announced", MICROPHONES_MAX);
        sources->is_cut |= sources->next.count == MICROPHONES_MAX;
        return;
    }
    sources->is_looking = false;
    /* A list that failed says nothing. */
    if (end > 0 && !sources->is_stale)
        looked(sources);
    if (sources->is_stale)
        look(sources);
    else if (end < 0 || lacks_choice(&sources->now))
        clock_timer_set(&sources->again, clock_now() + (sources->asked_again < ASK_AGAIN_TIMES
                                                            ? ASK_AGAIN_MS
                                                            : ASK_AGAIN_MS_RARELY));
}

static void list_sources(struct sources *sources)
{
    pa_operation *operation;

    memset(&sources->next, 0, sizeof sources->next);
    sources->offered_next.count = 0;
    operation = pa_context_get_source_info_list(sources->pulse, listed, sources);
    if (operation)
        pa_operation_unref(operation);
    else
        sources->is_looking = false;
}

static void introduced(pa_context *pulse, const pa_server_info *info, void *context)
{
    struct sources *sources = context;

    if (pulse != sources->pulse)
        return;
    if (info)
        snprintf(sources->default_name, sizeof sources->default_name, "%s",
                 info->default_source_name ? info->default_source_name : "");
    list_sources(sources);
}

/* One question at a time; what changes meanwhile makes its answer stale. */
static void look(struct sources *sources)
{
    pa_operation *operation;

    sources->is_looking = true;
    sources->is_stale = false;
    operation = pa_context_get_server_info(sources->pulse, introduced, sources);
    if (operation)
        pa_operation_unref(operation);
    else
        sources->is_looking = false;
}

static void look_again(void *context)
{
    struct sources *sources = context;

    if (!sources->pulse || sources->is_looking)
        return;
    if (sources->asked_again < ASK_AGAIN_TIMES)
        sources->asked_again++;
    look(sources);
}

void sources_look(struct sources *sources)
{
    if (!sources->pulse)
        return;
    sources->asked_again = 0;
    if (sources->is_looking)
        sources->is_stale = true;
    else
        look(sources);
}

const struct link_device *sources_list(const struct sources *sources, unsigned *count)
{
    *count = sources->now.devices_count;
    return sources->now.devices;
}

bool sources_has(const struct sources *sources, const char *device, const char *identity)
{
    const struct list *list = &sources->now;

    for (unsigned i = 0; i < list->devices_count; i++)
        if (!strcmp(list->devices[i].id, device))
            return !strcmp(list->devices[i].identity, identity);
    return false;
}

const char *sources_name(const struct sources *sources, const char *device)
{
    const struct list *list = &sources->now;
    bool is_choice = !strcmp(device, LINK_DEFAULT_DEVICE);

    for (unsigned i = 0; i < list->count; i++)
        if (is_choice ? list->devices[i].is_default : !strcmp(list->devices[i].id, device))
            return list->names[i];
    return NULL;
}

bool sources_offer(const struct sources *sources, const char *name)
{
    const struct offered *offered = &sources->offered;

    for (unsigned i = 0; i < offered->count; i++)
        if (!strcmp(offered->names[i], name))
            return true;
    return offered->count == OFFERED_MAX;
}

struct sources *sources_new(pa_mainloop_api *loop, const struct sources_events *events,
                            void *context)
{
    struct sources *sources = calloc(1, sizeof *sources);

    if (!sources)
        return NULL;
    sources->events = events;
    sources->context = context;
    clock_timer_init(&sources->again, loop, look_again, sources);
    return sources;
}

void sources_use(struct sources *sources, pa_context *pulse)
{
    sources->pulse = pulse;
    sources->is_looking = sources->is_stale = false;
    sources->offered.count = 0;
    clock_timer_set(&sources->again, NEVER);
    sources->is_known = false; /* the first list of a server is told in any case */
    sources_look(sources);
}

void sources_forget(struct sources *sources)
{
    memset(&sources->now, 0, sizeof sources->now);
    sources->is_known = false;
}

void sources_free(struct sources *sources)
{
    clock_timer_free(&sources->again);
    free(sources);
}
