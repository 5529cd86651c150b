/*
 * The stand-in Xen of the interop tests as a shared library, with what native/csrc/xen.c needs beside
 * it: watches, lists of children, and the one hypercall that tells whether a peer is still there.
 */
#define xs_open standin_xs_open
#define xs_close standin_xs_close
#define xs_write standin_xs_write
#define xs_transaction_start standin_xs_transaction_start
#define xs_transaction_end standin_xs_transaction_end
#define xs_rm standin_xs_rm
#define xs_read standin_xs_read
#define standin_in_use standin_all_in_use
#include "../interop/standin.c"
#undef standin_in_use
#undef xs_open
#undef xs_close
#undef xs_write
#undef xs_transaction_start
#undef xs_transaction_end
#undef xs_rm
#undef xs_read

#define WATCHES 16u

static struct watch { /* free when handle is NULL */
    struct xs_handle *handle;
    char path[NODE_TEXT];
    int fd; /* an eventfd with the number of events */
} watches[WATCHES];

/* One program cannot set a thread's variable of another language: this does. */
void standin_enter(unsigned domain)
{
    standin_domain = domain;
}

/* Without nodes that have no value: they say that a domain is there, and go with it. */
unsigned standin_in_use(void)
{
    unsigned used = standin_all_in_use();

    for (unsigned i = 0; i < NODES; i++)
        used -= nodes[i].path[0] && !nodes[i].value[0];
    return used;
}

/*
 * What happens when a domain ends: its ports close, no event is sent, its pages stay, and its nodes
 * are removed.
 */
void standin_kill(unsigned domain)
{
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < NODES; i++)
        if (nodes[i].path[0] && nodes[i].owner == domain)
            nodes[i].path[0] = 0;
    for (unsigned i = 0; i < PORTS; i++)
        if (ports[i].owner && ports[i].owner->domain == domain) {
            if (ports[i].remote_port)
                ports[ports[i].remote_port - 1].remote_port = 0;
            ports[i].owner = NULL;
        }
    pthread_mutex_unlock(&lock);
}

/* Lets a domain read a node that is there. */
void standin_permit(const char *path, unsigned reader)
{
    pthread_mutex_lock(&lock);
    find_node(path)->reader = reader;
    pthread_mutex_unlock(&lock);
}

static void fire(const char *path)
{
    const uint64_t one = 1;

    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < WATCHES; i++) {
        size_t length = strlen(watches[i].path);

        if (watches[i].handle && !strncmp(watches[i].path, path, length) &&
            (path[length] == 0 || path[length] == '/')) {
            ssize_t ignored = write(watches[i].fd, &one, sizeof one);

            (void)ignored;
        }
    }
    pthread_mutex_unlock(&lock);
}

/*
 * How xenstore fails for a thread that no test assigned to a domain, which is the guard's: opening
 * it fails with this errno, and a connection that was open by then stays broken.
 */
static int refusal;
static const struct xs_handle *of_guard, *broken;

void standin_store_fails(int error)
{
    pthread_mutex_lock(&lock);
    refusal = error;
    if (error)
        broken = of_guard;
    pthread_mutex_unlock(&lock);
}

struct xs_handle *xs_open(unsigned long flags)
{
    struct xs_handle *handle = NULL;

    if (standin_domain)
        return standin_xs_open(flags);
    pthread_mutex_lock(&lock);
    if (!refusal)
        of_guard = handle = standin_xs_open(flags);
    errno = refusal;
    pthread_mutex_unlock(&lock);
    return handle;
}

void xs_close(struct xs_handle *handle)
{
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < WATCHES; i++)
        if (handle && watches[i].handle == handle) {
            close(watches[i].fd);
            watches[i].handle = NULL;
        }
    if (handle == of_guard)
        of_guard = broken = NULL;
    pthread_mutex_unlock(&lock);
    standin_xs_close(handle);
}

void *xs_read(struct xs_handle *handle, xs_transaction_t transaction, const char *path,
              unsigned *length)
{
    /* A thread without a domain (the guard's) may read everything, as dom0 may. */
    if (!handle->domain && strcmp(path, "domid") != 0) {
        const struct node *node;
        char *value;

        pthread_mutex_lock(&lock);
        node = find_node(path); /* ENOENT if there is none */
        value = node ? strdup(node->value) : NULL;
        if (handle == broken) {
            free(value);
            value = NULL;
            errno = EIO;
        }
        pthread_mutex_unlock(&lock);
        return value;
    }
    return standin_xs_read(handle, transaction, path, length);
}

/* As in the real one, what is above a node is made with it. Only what a domain may write, here. */
static bool make_parents(struct xs_handle *handle, const char *path)
{
    char parent[NODE_TEXT];
    bool done = true;
    int depth = 0;

    for (size_t i = 1; path[i] && i < sizeof parent; i++) {
        bool is_there;

        if (path[i] != '/' || ++depth < 4) /* /local/domain/N/data is there already */
            continue;
        memcpy(parent, path, i);
        parent[i] = 0;
        pthread_mutex_lock(&lock);
        is_there = find_node(parent) != NULL;
        pthread_mutex_unlock(&lock);
        done = done && (is_there || standin_xs_write(handle, 0, parent, "", 0));
    }
    return done;
}

bool xs_write(struct xs_handle *handle, xs_transaction_t transaction, const char *path,
              const void *data, unsigned length)
{
    bool done = make_parents(handle, path) &&
                standin_xs_write(handle, transaction, path, data, length);

    fire(path);
    return done;
}

bool xs_rm(struct xs_handle *handle, xs_transaction_t transaction, const char *path);

/* What others did meanwhile is done here once, at the end of a transaction. */
static char meanwhile[NODE_TEXT];

void standin_write_meanwhile(const char *path)
{
    strcpy(meanwhile, path);
}

static char to_remove[NODE_TEXT]; /* by the one transaction that is open */

xs_transaction_t xs_transaction_start(struct xs_handle *handle)
{
    (void)handle;
    to_remove[0] = 0;
    return 1;
}

bool xs_transaction_end(struct xs_handle *handle, xs_transaction_t transaction, bool abort)
{
    char path[NODE_TEXT];

    (void)transaction;
    strcpy(path, meanwhile);
    meanwhile[0] = 0;
    if (path[0]) {
        xs_write(handle, 0, path, "1", 1);
        errno = EAGAIN;
        return abort;
    }
    if (!abort && to_remove[0])
        xs_rm(handle, 0, to_remove);
    return true;
}

bool xs_rm(struct xs_handle *handle, xs_transaction_t transaction, const char *path)
{
    if (transaction) {
        strcpy(to_remove, path);
        return true;
    }
    standin_xs_rm(handle, transaction, path);
    fire(path);
    return true;
}

char **xs_directory(struct xs_handle *handle, xs_transaction_t transaction, const char *path,
                    unsigned *count)
{
    char **names = calloc(1, NODES * (sizeof *names + NODE_TEXT)), *text;
    size_t length = strlen(path);
    bool is_there = false;

    (void)handle, (void)transaction;
    if (!names)
        return NULL;
    text = (char *)(names + NODES);
    *count = 0;
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < NODES; i++) {
        is_there |= !strcmp(nodes[i].path, path);
        if (!strncmp(nodes[i].path, path, length) && nodes[i].path[length] == '/' &&
            !strchr(nodes[i].path + length + 1, '/')) {
            names[(*count)++] = strcpy(text, nodes[i].path + length + 1);
            text += NODE_TEXT;
        }
    }
    pthread_mutex_unlock(&lock);
    if (*count || is_there)
        return names;
    free(names);
    errno = ENOENT;
    return NULL;
}

/* One watch a handle is enough here. The token is always the path. */
bool xs_watch(struct xs_handle *handle, const char *path, const char *token)
{
    bool done = false;

    (void)token;
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < WATCHES && !done; i++)
        if (!watches[i].handle) {
            watches[i].handle = handle;
            strcpy(watches[i].path, path);
            watches[i].fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK); /* one comes at once */
            done = true;
        }
    pthread_mutex_unlock(&lock);
    return done;
}

static struct watch *watch_of(const struct xs_handle *handle)
{
    for (unsigned i = 0; i < WATCHES; i++)
        if (watches[i].handle == handle)
            return &watches[i];
    return NULL;
}

bool xs_unwatch(struct xs_handle *handle, const char *path, const char *token)
{
    struct watch *watch = watch_of(handle);

    (void)path, (void)token;
    if (watch)
        watch->path[0] = '?'; /* nothing has such a name */
    return watch != NULL;
}

char **xs_check_watch(struct xs_handle *handle)
{
    const struct watch *watch = watch_of(handle);
    uint64_t count;
    char **event;

    errno = EAGAIN;
    if (!watch || read(watch->fd, &count, sizeof count) < 0)
        return NULL;
    event = calloc(1, 2 * sizeof *event + NODE_TEXT);
    event[0] = event[1] = strcpy((char *)(event + 2), watch->path);
    return event;
}

int xs_fileno(struct xs_handle *handle)
{
    const struct watch *watch = watch_of(handle);

    return watch ? watch->fd : -1;
}

/* ---- the hypercall ---- */

struct status {
    uint16_t domain;
    uint32_t port, status, vcpu;
    uint16_t remote_domain;
};

void *xencall_open(void *logger, unsigned flags)
{
    (void)logger, (void)flags;
    return calloc(1, 1);
}

void *xencall_alloc_buffer(void *handle, size_t size)
{
    (void)handle;
    return calloc(1, size);
}

int xencall2(void *handle, unsigned number, uint64_t operation, uint64_t argument)
{
    struct status *status = (struct status *)(uintptr_t)argument;

    (void)handle;
    if (number != 32 || operation != 5 || status->port < 1 || status->port > PORTS) {
        errno = EINVAL;
        return -1;
    }
    pthread_mutex_lock(&lock);
    status->status = ports[status->port - 1].owner == NULL        ? 0
                     : ports[status->port - 1].remote_port == 0 ? 1
                                                                : 2;
    status->remote_domain = (uint16_t)ports[status->port - 1].remote_domain;
    pthread_mutex_unlock(&lock);
    return 0;
}
