"""A thread in C that makes one file of written and synced zeros, without the interpreter lock.

Overwriting zeros that are on disk changes neither the file's size nor its extents, so syncing it
needs no journal commit of the file system. The zeros are sent to the disk piece by piece with
pauses, so that whoever syncs another file meanwhile never waits behind much of it.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t

import os

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <libgen.h>
    #include <pthread.h>
    #include <stdint.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/eventfd.h>
    #include <time.h>
    #include <unistd.h>

    enum { ZEROFILE_PIECE = 256 * 1024, ZEROFILE_PAUSE_NS = 1000000 };

    typedef struct {
        pthread_t thread;
        int running, event_fd;
        int cancelled;                       /* atomic; set by the owner */
        int done, error;                     /* done is atomic; set by the thread */
        const char *path, *temporary, *head; /* kept alive by the owner */
        int64_t head_size, size;
    } ShardbZeroFile;

    static int shardb_zerofile_fill(ShardbZeroFile *z, int fd) {
        char *piece = calloc(1, ZEROFILE_PIECE);
        int error = piece ? 0 : ENOMEM;
        if (!error && fallocate(fd, 0, 0, z->size) < 0 && errno != EOPNOTSUPP && errno != EINTR)
            error = errno;
        if (!error) memcpy(piece, z->head, z->head_size);
        for (int64_t at = 0; at < z->size && !error;) {
            int64_t left = z->size - at;
            if (left > ZEROFILE_PIECE) left = ZEROFILE_PIECE;
            ssize_t written = pwrite(fd, piece, left, at);
            if (written < 0) {
                if (errno != EINTR) error = errno;
                continue;
            }
            if (at == 0) {
                if (written < z->head_size) { error = EIO; break; }
                memset(piece, 0, z->head_size);
            }
            /* Only sends the pages off: what makes them durable is the sync at the end. */
            sync_file_range(fd, at, written, SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE
                            | SYNC_FILE_RANGE_WAIT_AFTER);
            at += written;
            if (__atomic_load_n(&z->cancelled, __ATOMIC_RELAXED)) error = ECANCELED;
            else if (at < z->size) {
                struct timespec pause = {0, ZEROFILE_PAUSE_NS};
                nanosleep(&pause, NULL);
            }
        }
        if (!error && fsync(fd) < 0) error = errno;
        free(piece);
        return error;
    }

    static int shardb_zerofile_sync_directory(const char *path) {
        char *copy = strdup(path);
        if (!copy) return ENOMEM;
        int error = 0, fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        free(copy);
        if (fd < 0) return errno;
        if (fsync(fd) < 0) error = errno;
        close(fd);
        return error;
    }

    static void *shardb_zerofile_run(void *argument) {
        ShardbZeroFile *z = argument;
        int error = 0, fd = open(z->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (fd < 0) error = errno;
        else {
            error = shardb_zerofile_fill(z, fd);
            close(fd);
            if (!error && rename(z->temporary, z->path) < 0) error = errno;
            if (error) unlink(z->temporary);
            else if ((error = shardb_zerofile_sync_directory(z->path))) unlink(z->path);
        }
        z->error = error;
        __atomic_store_n(&z->done, 1, __ATOMIC_RELEASE);
        uint64_t one = 1;
        ssize_t ignored = write(z->event_fd, &one, 8);
        (void)ignored;
        return NULL;
    }

    static int shardb_zerofile_start(ShardbZeroFile *z) {
        z->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (z->event_fd < 0) return errno;
        int error = pthread_create(&z->thread, NULL, shardb_zerofile_run, z);
        z->running = !error;
        return error;
    }

    static void shardb_zerofile_cancel(ShardbZeroFile *z) {
        __atomic_store_n(&z->cancelled, 1, __ATOMIC_RELAXED);
    }

    static int shardb_zerofile_done(ShardbZeroFile *z) {
        return __atomic_load_n(&z->done, __ATOMIC_ACQUIRE);
    }

    static void shardb_zerofile_join(ShardbZeroFile *z) {
        if (z->running) pthread_join(z->thread, NULL);
        z->running = 0;
    }

    static void shardb_zerofile_close(ShardbZeroFile *z) {
        if (z->event_fd >= 0) close(z->event_fd);
        z->event_fd = -1;
    }
    """
    ctypedef struct ShardbZeroFile:
        int event_fd
        int error
        const char* path
        const char* temporary
        const char* head
        int64_t head_size
        int64_t size
    enum: ZEROFILE_PIECE
    int zerofile_start "shardb_zerofile_start"(ShardbZeroFile* z) noexcept nogil
    void zerofile_cancel "shardb_zerofile_cancel"(ShardbZeroFile* z) noexcept nogil
    int zerofile_done "shardb_zerofile_done"(ShardbZeroFile* z) noexcept nogil
    void zerofile_join "shardb_zerofile_join"(ShardbZeroFile* z) noexcept nogil
    void zerofile_close "shardb_zerofile_close"(ShardbZeroFile* z) noexcept nogil


@cython.final
cdef class ZeroFile:
    """The making of one file: `head`, then zeros up to `size_bytes`; all of it or nothing.

    It is made under the name `temporary`, synced, and renamed to `path`, durably.
    """

    cdef ShardbZeroFile c
    cdef tuple held

    def __cinit__(self, bytes path, bytes temporary, bytes head, int64_t size_bytes):
        cdef int error
        self.c.event_fd = -1
        if not len(head) <= size_bytes or len(head) > ZEROFILE_PIECE:
            raise ValueError("the head is longer than the file or a piece of it")
        self.held = path, temporary, head
        self.c.path = PyBytes_AS_STRING(path)
        self.c.temporary = PyBytes_AS_STRING(temporary)
        self.c.head = PyBytes_AS_STRING(head)
        self.c.head_size = PyBytes_GET_SIZE(head)
        self.c.size = size_bytes
        error = zerofile_start(&self.c)
        if error:
            raise OSError(error, os.strerror(error))

    def __dealloc__(self):
        zerofile_cancel(&self.c)
        with nogil:
            zerofile_join(&self.c)
            zerofile_close(&self.c)

    def fileno(self):
        """Becomes readable when the file is made or has failed."""
        return self.c.event_fd

    def cancel(self):
        """Makes it end soon, with ECANCELED if it has not been quicker."""
        zerofile_cancel(&self.c)

    def take(self, bint wait=False):
        """None while it is being made, else the errno, 0 for success. With `wait`, waits."""
        if not wait and not zerofile_done(&self.c):
            return None
        with nogil:
            zerofile_join(&self.c)
        return self.c.error
