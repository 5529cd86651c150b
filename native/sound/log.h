/* What the program says on standard error. */
#ifndef PEDOS_SOUND_LOG_H
#define PEDOS_SOUND_LOG_H

#include <stdbool.h>

extern bool log_is_verbose;

/* What somebody has to do something about. Not once for each event that another can cause. */
__attribute__((format(printf, 1, 2))) void log_warning(const char *form, ...);
/* Only with --verbose. */
__attribute__((format(printf, 1, 2))) void log_detail(const char *form, ...);

#endif
