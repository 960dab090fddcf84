/* Joins slices of columns into a batch in one call, without a Python object per slice and without the interpreter lock.

   A batch is larger than the caches, so its lines are written past them where the processor supports it (streaming or
   non-temporal stores): an ordinary store first reads the line that it is about to overwrite, which adds half as much
   memory traffic again. Without SSE2, e.g. on ARM, the copy is an ordinary memcpy of each slice.
   longbatch.loaders.copy_slices has the same function in NumPy, and documents arguments and errors.

   With S slices, C columns and B blocks, for each column c in turn the slices 0 to S - 1 are written one after another:

       out + column_offsets[c]:   | slice 0 of column c | slice 1 of column c | ... | slice S - 1 of column c |

   where slice s of column c is sources[slice_blocks[s] * C + c][starts[s] : ends[s]].

   Example, with one column: block 0 has [10 11 12], block 1 has [20 21]; slice_blocks [1 0], starts [0 1], ends [2 3].
   The slices are [20 21] and [11 12], and `out` contains [20 21 11 12] from byte column_offsets[0] on.

   Columns are the outer loop, so that the destination is written strictly forward, as one stream of full cache lines.

   Safety: all bounds are checked before the first byte is written. Between check and copy nothing can move or shrink,
   because every array is held through a Py_buffer. The arguments are not copied: no other thread may change `starts`,
   `ends` or `slice_blocks` during the call. The collator creates these arrays for each batch, unshared. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define CACHE_LINE 64
#define LARGE_BATCH (8 << 20)    /* bytes; a smaller batch may still be in the caches when it is used */
#define LARGE_SLICE 1024         /* bytes; for shorter slices, aligning the destination costs more than it saves */
#define PREFETCH_DISTANCE 1024   /* bytes that are requested from memory before they are copied */

typedef struct {
    Py_buffer out, column_offsets, slice_blocks, starts, ends;
    Py_buffer *sources; /* the columns of block 0, then those of block 1 and so on */
    Py_ssize_t columns, blocks, slices;
    int past_caches; /* depends on the whole batch, not on one slice: the caches can hold the batch or they cannot */
} Join;

/* The dtype int64 is not checked, only the number of bytes: join_slices is private, and mypy checks its callers. */
static const int64_t *integers(const Py_buffer *view) { return view->buf; }

static const Py_buffer *source_of(const Join *join, Py_ssize_t slice, Py_ssize_t column)
{
    return &join->sources[integers(&join->slice_blocks)[slice] * join->columns + column];
}

static void copy_past_caches(char *to, const char *from, size_t size)
{
#ifdef __SSE2__
    /* Streaming stores need an aligned destination, so the bytes before the first full cache line are copied as usual:
       from address 130 these are the 62 bytes up to 192. `size` is at least LARGE_SLICE, hence larger than `head`. */
    size_t head = (size_t)(-(uintptr_t)to) % CACHE_LINE;
    memcpy(to, from, head);
    to += head, from += head, size -= head;
    /* One full cache line in each step, so that the processor sends it to memory as one write (write combining).
       The source may have any alignment, hence loadu. */
    for (; size >= CACHE_LINE; to += CACHE_LINE, from += CACHE_LINE, size -= CACHE_LINE) {
        /* A prefetch beyond the end of the source does not fault. NTA: the source is read once, so it should not evict
           what is in the caches. */
        _mm_prefetch(from + PREFETCH_DISTANCE, _MM_HINT_NTA);
        __m128i a = _mm_loadu_si128((const __m128i *)from), b = _mm_loadu_si128((const __m128i *)(from + 16));
        __m128i c = _mm_loadu_si128((const __m128i *)(from + 32)), d = _mm_loadu_si128((const __m128i *)(from + 48));
        _mm_stream_si128((__m128i *)to, a), _mm_stream_si128((__m128i *)(to + 16), b);
        _mm_stream_si128((__m128i *)(to + 32), c), _mm_stream_si128((__m128i *)(to + 48), d);
    }
#endif
    memcpy(to, from, size); /* the bytes after the last full cache line; everything without SSE2 */
}

static void copy_column(const Join *join, Py_ssize_t column)
{
    const int64_t *starts = integers(&join->starts), *ends = integers(&join->ends);
    char *to = (char *)join->out.buf + integers(&join->column_offsets)[column];
    for (Py_ssize_t slice = 0; slice < join->slices; slice++) {
        const Py_buffer *source = source_of(join, slice, column);
        const char *from = (const char *)source->buf + starts[slice] * source->itemsize;
        size_t size = (size_t)((ends[slice] - starts[slice]) * source->itemsize);
        if (join->past_caches && size >= LARGE_SLICE)
            copy_past_caches(to, from, size);
        else
            memcpy(to, from, size);
        to += size;
    }
}

static void copy_all(const Join *join)
{
    for (Py_ssize_t column = 0; column < join->columns; column++)
        copy_column(join, column);
#ifdef __SSE2__
    /* Streaming stores are weakly ordered: make them visible to other threads and processes before this call returns,
       so that the batch is complete before anything announces it. */
    _mm_sfence();
#endif
}

/* Raises IndexError unless every slice is inside its source, and all slices of the column fit `out`. */
static int check_column(const Join *join, Py_ssize_t column)
{
    const int64_t *starts = integers(&join->starts), *ends = integers(&join->ends);
    /* A negative offset is refused below, whatever this difference is. */
    int64_t offset = integers(&join->column_offsets)[column], remaining = join->out.len - offset;
    for (Py_ssize_t slice = 0; slice < join->slices && remaining >= 0; slice++) {
        const Py_buffer *source = source_of(join, slice, column);
        /* The end is compared with a number of values, not of bytes: a product of a huge end could overflow. */
        if (starts[slice] < 0 || starts[slice] > ends[slice] || ends[slice] > source->len / source->itemsize) {
            PyErr_Format(PyExc_IndexError, "slice %zd of column %zd is [%lld, %lld), but the column has %zd values",
                         slice, column, (long long)starts[slice], (long long)ends[slice],
                         source->len / source->itemsize);
            return -1;
        }
        /* Cannot overflow: a slice has at most source->len bytes, and the loop ends when the rest is negative. */
        remaining -= (ends[slice] - starts[slice]) * source->itemsize;
    }
    if (offset < 0 || remaining < 0) {
        PyErr_Format(PyExc_IndexError, "column %zd at byte %lld does not fit the %zd bytes of the batch", column,
                     (long long)offset, join->out.len);
        return -1;
    }
    return 0;
}

/* Raises TypeError unless every block has the same columns, IndexError unless every slice belongs to a block. */
static int check_blocks(const Join *join)
{
    for (Py_ssize_t i = 0; i < join->blocks * join->columns; i++) {
        /* The copy moves bytes, so that only this check keeps float32 out of a column of int32. */
        const Py_buffer *source = &join->sources[i], *first = &join->sources[i % join->columns];
        if (source->itemsize <= 0 || source->itemsize != first->itemsize || strcmp(source->format, first->format)) {
            PyErr_Format(PyExc_TypeError, "column %zd has values of type %s in block %zd, but of type %s in block 0",
                         i % join->columns, source->format, i / join->columns, first->format);
            return -1;
        }
    }
    for (Py_ssize_t slice = 0; slice < join->slices; slice++) {
        int64_t block = integers(&join->slice_blocks)[slice];
        if (block < 0 || block >= join->blocks) {
            PyErr_Format(PyExc_IndexError, "slice %zd is of block %lld, but there are %zd blocks", slice,
                         (long long)block, join->blocks);
            return -1;
        }
    }
    return 0;
}

/* Checks all arguments before anything is copied: counts, then blocks, then columns; each relies on the one before. */
static int check(Join *join, Py_ssize_t sources)
{
    join->columns = join->column_offsets.len / (Py_ssize_t)sizeof(int64_t);
    join->slices = join->slice_blocks.len / (Py_ssize_t)sizeof(int64_t);
    join->past_caches = join->out.len >= LARGE_BATCH;
    if (join->starts.len != join->slice_blocks.len || join->ends.len != join->slice_blocks.len || !join->columns ||
        sources % join->columns) {
        PyErr_SetString(PyExc_ValueError, "slice_blocks, starts and ends need one number per slice, "
                                          "and sources needs one array per block and column");
        return -1;
    }
    join->blocks = sources / join->columns;
    if (check_blocks(join))
        return -1;
    for (Py_ssize_t column = 0; column < join->columns; column++)
        if (check_column(join, column))
            return -1;
    return 0;
}

/* Acquires the buffers of a list of objects. Returns how many it acquired: all of them unless an error is set.
   PyBUF_ND without strides makes NumPy refuse arrays that are not contiguous, so that a slice is one range of bytes. */
static Py_ssize_t acquire_sources(PyObject *list, Py_buffer *views)
{
    Py_ssize_t count = PyList_Size(list);
    for (Py_ssize_t i = 0; i < count; i++)
        if (PyObject_GetBuffer(PyList_GetItem(list, i), &views[i], PyBUF_ND | PyBUF_FORMAT))
            return i;
    return count;
}

static PyObject *join_slices(PyObject *module, PyObject *arguments)
{
    PyObject *objects[5], *list, *result = NULL;
    if (!PyArg_ParseTuple(arguments, "OOO!OOO", &objects[0], &objects[1], &PyList_Type, &list, &objects[2], &objects[3],
                          &objects[4]))
        return NULL;
    Py_ssize_t acquired_sources = 0, count = PyList_Size(list);
    Join join = {.sources = PyMem_Calloc((size_t)count + 1, sizeof(Py_buffer))};
    Py_buffer *views[5] = {&join.out, &join.column_offsets, &join.slice_blocks, &join.starts, &join.ends};
    int acquired = 0;
    if (!join.sources)
        PyErr_NoMemory();
    else /* only the first buffer, `out`, is written to */
        while (acquired < 5 &&
               !PyObject_GetBuffer(objects[acquired], views[acquired], acquired ? PyBUF_SIMPLE : PyBUF_WRITABLE))
            acquired++;
    if (acquired == 5 && (acquired_sources = acquire_sources(list, join.sources)) == count && !check(&join, count)) {
        /* Without the lock: copy_all touches no Python object, only memory whose buffers are held until below. */
        Py_BEGIN_ALLOW_THREADS
        copy_all(&join);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    /* Release what was acquired, on success and after every error. */
    while (acquired_sources)
        PyBuffer_Release(&join.sources[--acquired_sources]);
    while (acquired)
        PyBuffer_Release(views[--acquired]);
    PyMem_Free(join.sources);
    return result;
}

static PyMethodDef functions[] = {
    {"join_slices", join_slices, METH_VARARGS,
     "join_slices(out, column_offsets, sources, slice_blocks, starts, ends)\n--\n\n"
     "Join slices of columns; see longbatch.loaders.copy_slices.join_slices_with_numpy."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT, .m_name = "_copy_slices", .m_size = -1, .m_methods = functions,
};

PyMODINIT_FUNC PyInit__copy_slices(void)
{
    return PyModule_Create(&definition);
}
