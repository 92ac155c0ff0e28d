"""A thread in C that writes and syncs one batch at a time and never takes the interpreter lock.

And `write_back`, which has the kernel begin to write what a sync will wait for.

Why not a Python thread: beside an event loop that is busy but gives the lock up for a moment each
turn, a Python thread loses nearly every race for it and may wait for seconds to report one sync
(bench/micro/log.py, "loop busy"). Here the thread tells the loop through an eventfd.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc

import os

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <pthread.h>
    #include <stdint.h>
    #include <sys/eventfd.h>
    #include <sys/uio.h>
    #include <unistd.h>

    enum { SYNCER_IDLE, SYNCER_WORK, SYNCER_DONE, SYNCER_STOP };

    typedef struct {
        pthread_t thread;
        pthread_mutex_t mutex;
        pthread_cond_t changed;
        int started, state, event_fd;
        int fd;                   /* the job: where, what, from which offset */
        struct iovec *parts;
        int64_t count, offset;
        int write_error, sync_error;
    } ShardbSyncer;

    static int shardb_write_all(ShardbSyncer *s) {
        struct iovec *part = s->parts;
        int64_t left = s->count;
        off_t at = (off_t)s->offset;
        while (left > 0) {
            ssize_t written = pwritev(s->fd, part, left > 512 ? 512 : (int)left, at);
            if (written < 0) {
                if (errno == EINTR) continue;
                return errno;
            }
            at += written;
            while (left > 0 && (size_t)written >= part->iov_len) {
                written -= part->iov_len;
                part++; left--;
            }
            if (left > 0) {
                part->iov_base = (char *)part->iov_base + written;
                part->iov_len -= written;
            }
        }
        return 0;
    }

    static void shardb_write_and_sync(ShardbSyncer *s, int *write_error, int *sync_error) {
        *sync_error = 0;
        *write_error = shardb_write_all(s);
        if (!*write_error && fdatasync(s->fd) < 0) *sync_error = errno;
    }

    static void *shardb_syncer_run(void *argument) {
        ShardbSyncer *s = argument;
        pthread_mutex_lock(&s->mutex);
        for (;;) {
            while (s->state == SYNCER_IDLE || s->state == SYNCER_DONE)
                pthread_cond_wait(&s->changed, &s->mutex);
            if (s->state == SYNCER_STOP) break;
            pthread_mutex_unlock(&s->mutex);
            int write_error, sync_error;
            shardb_write_and_sync(s, &write_error, &sync_error);
            pthread_mutex_lock(&s->mutex);
            s->write_error = write_error;
            s->sync_error = sync_error;
            if (s->state == SYNCER_WORK) s->state = SYNCER_DONE;
            pthread_mutex_unlock(&s->mutex);
            /* Without the mutex, or who is woken would wait for it at once and be woken twice. A
               `take` that waits may come before the write, so that the next one finds no job done:
               it clears the eventfd all the same. */
            pthread_cond_broadcast(&s->changed);
            uint64_t one = 1;
            ssize_t ignored = write(s->event_fd, &one, 8);
            (void)ignored;
            pthread_mutex_lock(&s->mutex);
        }
        pthread_mutex_unlock(&s->mutex);
        return NULL;
    }

    static int shardb_syncer_start(ShardbSyncer *s) {
        pthread_mutex_init(&s->mutex, NULL);
        pthread_cond_init(&s->changed, NULL);
        s->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (s->event_fd < 0) return errno;
        int error = pthread_create(&s->thread, NULL, shardb_syncer_run, s);
        s->started = !error;
        return error;
    }

    static void shardb_syncer_submit(ShardbSyncer *s) {
        pthread_mutex_lock(&s->mutex);
        s->state = SYNCER_WORK;
        pthread_mutex_unlock(&s->mutex);
        pthread_cond_broadcast(&s->changed);
    }

    /* 1 and the job's result if it is done; the job is then over. */
    static int shardb_syncer_take(ShardbSyncer *s, int wait) {
        pthread_mutex_lock(&s->mutex);
        while (wait && s->state == SYNCER_WORK) pthread_cond_wait(&s->changed, &s->mutex);
        int done = s->state == SYNCER_DONE;
        uint64_t count;
        ssize_t ignored = read(s->event_fd, &count, 8);
        (void)ignored;
        if (done) s->state = SYNCER_IDLE;
        pthread_mutex_unlock(&s->mutex);
        return done;
    }

    static void shardb_syncer_stop(ShardbSyncer *s) {
        if (s->started) {
            pthread_mutex_lock(&s->mutex);
            s->state = SYNCER_STOP;
            pthread_cond_broadcast(&s->changed);
            pthread_mutex_unlock(&s->mutex);
            pthread_join(s->thread, NULL);
            s->started = 0;
        }
        if (s->event_fd >= 0) close(s->event_fd);
        s->event_fd = -1;
    }

    static int shardb_write_back(int fd, int64_t offset, int64_t size, int64_t before) {
    #ifdef SYNC_FILE_RANGE_WRITE
        if (before > 0 &&
            sync_file_range(fd, offset - before, before, SYNC_FILE_RANGE_WAIT_BEFORE) < 0)
            return errno;
        if (sync_file_range(fd, offset, size, SYNC_FILE_RANGE_WRITE) < 0) return errno;
    #endif
        return 0;
    }
    """
    struct iovec:
        void* iov_base
        size_t iov_len
    ctypedef struct ShardbSyncer:
        int event_fd
        int fd
        iovec* parts
        int64_t count
        int64_t offset
        int write_error
        int sync_error
    void write_and_sync "shardb_write_and_sync"(
        ShardbSyncer* s, int* write_error, int* sync_error
    ) noexcept nogil
    int syncer_start "shardb_syncer_start"(ShardbSyncer* s) noexcept nogil
    void syncer_submit "shardb_syncer_submit"(ShardbSyncer* s) noexcept nogil
    int syncer_take "shardb_syncer_take"(ShardbSyncer* s, int wait) noexcept nogil
    void syncer_stop "shardb_syncer_stop"(ShardbSyncer* s) noexcept nogil
    int begin_write_back "shardb_write_back"(
        int fd, int64_t offset, int64_t size, int64_t before
    ) noexcept nogil


def write_back(int fd, int64_t offset, int64_t size_bytes, int64_t before_bytes):
    """Has the kernel begin to write these bytes of a file to the disk, and waits for those before.

    Nothing is durable by that, but the sync that follows finds little left to write: one of very
    much at once would keep those of other files waiting. Raises OSError, also what became of bytes
    written earlier, for the sync would not say so again.
    """
    cdef int error
    with nogil:
        error = begin_write_back(fd, offset, size_bytes, before_bytes)
    if error:
        raise OSError(error, os.strerror(error))


@cython.final
cdef class Syncer:
    """One background writer. At most one job at a time; all methods from one thread."""

    cdef ShardbSyncer c
    cdef tuple held        # the parts of the running job

    def __cinit__(self):
        cdef int error
        self.c.event_fd = -1
        error = syncer_start(&self.c)
        if error:
            raise OSError(error, os.strerror(error))

    def __dealloc__(self):
        with nogil:
            syncer_stop(&self.c)
        free(self.c.parts)

    def fileno(self):
        """Becomes readable when a job is done, until `take`."""
        return self.c.event_fd

    def submit(self, int fd, parts, int64_t offset):
        """Starts writing the bytes objects `parts` at `offset` of `fd`, and then syncing it."""
        self.hold(fd, parts, offset)
        syncer_submit(&self.c)

    def run(self, int fd, parts, int64_t offset):
        """The same on this thread: returns when it is done, as `take` does."""
        cdef int write_error, sync_error
        self.hold(fd, parts, offset)
        with nogil:
            write_and_sync(&self.c, &write_error, &sync_error)
        self.held = None
        return write_error, sync_error

    cdef int hold(self, int fd, parts, int64_t offset) except -1:
        """Keeps a job and what it writes."""
        cdef tuple held = tuple(parts)
        cdef Py_ssize_t count = len(held)
        cdef Py_ssize_t index
        cdef bytes part
        cdef iovec* vectors
        assert self.held is None and self.c.event_fd >= 0, "a job is running"
        vectors = <iovec*> malloc((count or 1) * sizeof(iovec))
        if vectors == NULL:
            raise MemoryError
        free(self.c.parts)
        self.c.parts = vectors
        for index in range(count):
            part = held[index]
            vectors[index].iov_base = PyBytes_AS_STRING(part)
            vectors[index].iov_len = PyBytes_GET_SIZE(part)
        self.c.fd = fd
        self.c.count = count
        self.c.offset = offset
        self.held = held
        return 0

    def take(self, bint wait=False):
        """None if no job is done, else the errnos (of writing, of syncing), 0 for success.

        With `wait`, waits for a running job.
        """
        cdef int done
        with nogil:
            done = syncer_take(&self.c, wait)
        if not done:
            return None
        self.held = None
        return self.c.write_error, self.c.sync_error

    def close(self):
        """Waits for a running job and ends the thread."""
        with nogil:
            syncer_stop(&self.c)
        self.held = None
