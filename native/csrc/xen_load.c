#include "xen_load.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>

struct xen_functions xen;

enum library { VCHAN, EVTCHN, GNTTAB, CALL, STORE, LIBRARIES };

/*
 * In the order in which they are tried. libxenvchan's name changes with every release of Xen, so it
 * cannot be linked with. A release that is not in this list is not tried: xen_load.h repeats its
 * structure, which has to be checked for each release. For xs_path in it, see there.
 */
static const struct candidate {
    enum library library;
    const char *name;
    bool has_path;
} candidates[] = {
    {VCHAN, "libxenvchan.so.4.20", true}, /* Debian 13 */
    {VCHAN, "libxenvchan.so.4.17", true}, /* Debian 12 */
    {VCHAN, "libxenvchan.so.4.21", true},
    {VCHAN, "libxenvchan.so.4.19", true},
    {VCHAN, "libxenvchan.so.4.18", true},
    {VCHAN, "libxenvchan.so.4.16", false},
    {VCHAN, "libxenvchan.so.4.15", false},
    {VCHAN, "libxenvchan.so.4.14", false}, /* Debian 11 */
    {EVTCHN, "libxenevtchn.so.1", false},
    {GNTTAB, "libxengnttab.so.1", false},
    {CALL, "libxencall.so.1", false},
    {STORE, "libxenstore.so.4", false},
    {STORE, "libxenstore.so.3.0", false},
};

static const char *const packages[LIBRARIES] = {
    [VCHAN] = "libxenvchan is not there: install the Debian package libxenmisc of this release "
              "(apt-cache search --names-only ^libxenmisc)",
    [EVTCHN] = "libxenevtchn is not there: install the Debian package libxenevtchn1",
    [GNTTAB] = "libxengnttab is not there: install the Debian package libxengnttab1",
    [CALL] = "libxencall is not there: install the Debian package libxencall1",
    [STORE] = "libxenstore is not there: install the Debian package libxenstore4",
};

static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;
static bool loaded;

static const char *load(void)
{
    void *libraries[LIBRARIES] = {0};

    for (size_t i = 0; i < sizeof candidates / sizeof *candidates; i++) {
        const struct candidate *one = &candidates[i];

        if (libraries[one->library])
            continue;
        libraries[one->library] = dlopen(one->name, RTLD_NOW | RTLD_LOCAL);
        if (libraries[one->library] && one->library == VCHAN)
            xen.has_path = one->has_path;
    }
    for (int i = 0; i < LIBRARIES; i++)
        if (!libraries[i])
            return packages[i];
#define RESOLVE(library, result, function, parameters)                                             \
    xen.function = (result(*) parameters)dlsym(libraries[library], #function);                     \
    if (!xen.function)                                                                             \
        return "the Xen library that should have " #function " has not: it is too old or too new";
    XEN_FUNCTIONS(RESOLVE)
#undef RESOLVE
    loaded = true; /* for good: these libraries start threads, and must not be unloaded */
    return NULL;
}

int pv_xen_load(const char **problem)
{
    const char *said = NULL;

    pthread_mutex_lock(&loading);
    if (!loaded)
        said = load();
    pthread_mutex_unlock(&loading);
    if (problem)
        *problem = said;
    return said ? -ENOSYS : 0;
}
