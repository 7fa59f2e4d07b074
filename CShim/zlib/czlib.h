#ifndef PM_CZLIB_H
#define PM_CZLIB_H
#include <zlib.h>
#endif
