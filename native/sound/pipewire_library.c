#include "pipewire_library.h"

#include <dlfcn.h>

#define SONAME "libpipewire-0.3.so.0"

static struct pipewire_library library;
static bool is_loaded;

static bool load(void *handle)
{
/* A function pointer has the size of a pointer to an object with every libdl. */
#define LOAD(name)                                                                                 \
    *(void **)&library.name = dlsym(handle, #name);                                                \
    if (library.name == NULL)                                                                      \
        return false;
    PIPEWIRE_FUNCTIONS(LOAD)
#undef LOAD
    return true;
}

const struct pipewire_library *pipewire_library(const char **why)
{
    void *handle;

    if (is_loaded)
        return &library;
    handle = dlopen(SONAME, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL || !load(handle)) {
        *why = dlerror();
        if (*why == NULL)
            *why = SONAME " lacks a function";
        if (handle != NULL)
            dlclose(handle);
        return NULL;
    }
    library.pw_init(NULL, NULL);
    is_loaded = true;
    return &library;
}
