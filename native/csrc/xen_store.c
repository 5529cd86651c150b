#include "xen.h"
#include "xen_load.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct pv_store {
    void *handle;
};

int pv_store_open(struct pv_store **store)
{
    struct pv_store *made;
    int error = pv_xen_load(NULL);

    if (error)
        return error;
    made = calloc(1, sizeof *made);
    if (!made)
        return -ENOMEM;
    made->handle = xen.xs_open(0);
    if (!made->handle) {
        error = errno ? -errno : -EIO;
        free(made);
        return error == -ENOENT ? -ENODEV : error;
    }
    *store = made;
    return 0;
}

void pv_store_close(struct pv_store *store)
{
    xen.xs_close(store->handle);
    free(store);
}

static int64_t give(const char *value, size_t length, char *into, size_t max)
{
    memcpy(into, value, length < max ? length : max);
    return (int64_t)length;
}

int64_t pv_store_read(struct pv_store *store, const char *path, char *into, size_t max)
{
    unsigned length = 0;
    char *value = xen.xs_read(store->handle, NO_TRANSACTION, path, &length);
    int64_t result = value ? give(value, length, into, max) : -errno;

    free(value);
    return result;
}

int64_t pv_store_list(struct pv_store *store, const char *path, char *into, size_t max)
{
    unsigned count = 0;
    char **names = xen.xs_directory(store->handle, NO_TRANSACTION, path, &count);
    size_t length = 0;

    if (!names)
        return -errno;
    for (unsigned i = 0; i < count; i++) {
        size_t part = strlen(names[i]) + 1;

        if (length + part <= max)
            memcpy(into + length, names[i], part);
        length += part;
    }
    free(names); /* one block with all the strings in it */
    return (int64_t)length;
}

int pv_store_write(struct pv_store *store, const char *path, const char *value, size_t length)
{
    return xen.xs_write(store->handle, NO_TRANSACTION, path, value, (unsigned)length) ? 0 : -errno;
}

int pv_store_remove(struct pv_store *store, const char *path)
{
    return xen.xs_rm(store->handle, NO_TRANSACTION, path) ? 0 : -errno;
}

int pv_store_watch(struct pv_store *store, const char *path)
{
    return xen.xs_watch(store->handle, path, path) ? 0 : -errno;
}

int pv_store_unwatch(struct pv_store *store, const char *path)
{
    return xen.xs_unwatch(store->handle, path, path) ? 0 : -errno;
}

int64_t pv_store_event(struct pv_store *store, char *into, size_t max)
{
    char **event;
    int64_t length;

    errno = 0;
    event = xen.xs_check_watch(store->handle);
    if (!event)
        return errno == EAGAIN || errno == 0 ? 0 : -errno;
    length = give(event[0], strlen(event[0]) + 1, into, max) - 1;
    free(event);
    return length;
}

int pv_store_fileno(struct pv_store *store)
{
    return xen.xs_fileno(store->handle);
}
