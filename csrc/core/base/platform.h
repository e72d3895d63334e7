// Features that only some systems have. CMake looks for them (csrc/core/CMakeLists.txt); a build without CMake assumes
// Linux's. Each has a portable fallback, which -DFASTSEQ_PORTABLE=ON uses everywhere.
#pragma once

#ifdef __linux__
#define FASTSEQ_IS_LINUX 1
#else
#define FASTSEQ_IS_LINUX 0
#endif

#ifndef FASTSEQ_HAS_PREADV2  // with RWF_NOWAIT: reads only from the page cache
#define FASTSEQ_HAS_PREADV2 FASTSEQ_IS_LINUX
#endif
#ifndef FASTSEQ_HAS_FADVISE  // posix_fadvise
#define FASTSEQ_HAS_FADVISE FASTSEQ_IS_LINUX
#endif
#ifndef FASTSEQ_HAS_NANOSECONDS  // struct stat has st_mtim
#define FASTSEQ_HAS_NANOSECONDS FASTSEQ_IS_LINUX
#endif
#ifndef FASTSEQ_HAS_THREAD_NAMES  // pthread_setname_np of two arguments
#define FASTSEQ_HAS_THREAD_NAMES FASTSEQ_IS_LINUX
#endif
#ifndef FASTSEQ_HAS_MEMFD  // anonymous memory that other processes open through /proc
#define FASTSEQ_HAS_MEMFD FASTSEQ_IS_LINUX
#endif
#ifndef FASTSEQ_HAS_FUTEX
#define FASTSEQ_HAS_FUTEX FASTSEQ_IS_LINUX
#endif
