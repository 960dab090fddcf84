/* Joins slices of columns into a batch in one call: no object for each slice, and without the interpreter's lock.

   A batch is larger than the caches, so its lines are written past them (streaming stores) where the processor can: an
   ordinary store first reads the line that it is about to overwrite, which is half as much traffic again.
   Meaning and limits: longbatch.loaders.slices, which has the same function in NumPy. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define LINE 64
#define LARGE_BATCH (8 << 20) /* bytes; a smaller one may still be in the caches when it is used */
#define LARGE_SLICE 1024
#define AHEAD 1024 /* bytes that are read before they are needed */

typedef struct {
    Py_buffer out, places, owner, starts, ends;
    Py_buffer *sources; /* of each block its columns, one after another */
    Py_ssize_t columns, blocks, spans;
    int past_caches;
} Join;

static const int64_t *numbers(const Py_buffer *view) { return view->buf; }

static const Py_buffer *source_of(const Join *join, Py_ssize_t span, Py_ssize_t column)
{
    return &join->sources[numbers(&join->owner)[span] * join->columns + column];
}

static void copy_past_caches(char *to, const char *from, size_t size)
{
#ifdef __SSE2__
    size_t head = (size_t)(-(uintptr_t)to) % LINE;
    memcpy(to, from, head);
    to += head, from += head, size -= head;
    for (; size >= LINE; to += LINE, from += LINE, size -= LINE) {
        _mm_prefetch(from + AHEAD, _MM_HINT_NTA);
        __m128i a = _mm_loadu_si128((const __m128i *)from), b = _mm_loadu_si128((const __m128i *)(from + 16));
        __m128i c = _mm_loadu_si128((const __m128i *)(from + 32)), d = _mm_loadu_si128((const __m128i *)(from + 48));
        _mm_stream_si128((__m128i *)to, a), _mm_stream_si128((__m128i *)(to + 16), b);
        _mm_stream_si128((__m128i *)(to + 32), c), _mm_stream_si128((__m128i *)(to + 48), d);
    }
#endif
    memcpy(to, from, size);
}

static void copy_column(const Join *join, Py_ssize_t column)
{
    const int64_t *starts = numbers(&join->starts), *ends = numbers(&join->ends);
    char *to = (char *)join->out.buf + numbers(&join->places)[column];
    for (Py_ssize_t span = 0; span < join->spans; span++) {
        const Py_buffer *source = source_of(join, span, column);
        const char *from = (const char *)source->buf + starts[span] * source->itemsize;
        size_t size = (size_t)((ends[span] - starts[span]) * source->itemsize);
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
    _mm_sfence();
#endif
}

static int check_column(const Join *join, Py_ssize_t column)
{
    const int64_t *starts = numbers(&join->starts), *ends = numbers(&join->ends);
    int64_t place = numbers(&join->places)[column], left = join->out.len - place;
    for (Py_ssize_t span = 0; span < join->spans && left >= 0; span++) {
        const Py_buffer *source = source_of(join, span, column);
        if (starts[span] < 0 || starts[span] > ends[span] || ends[span] > source->len / source->itemsize) {
            PyErr_Format(PyExc_IndexError, "span %zd of column %zd is [%lld, %lld), of %zd values", span, column,
                         (long long)starts[span], (long long)ends[span], source->len / source->itemsize);
            return -1;
        }
        left -= (ends[span] - starts[span]) * source->itemsize;
    }
    if (place < 0 || left < 0) {
        PyErr_Format(PyExc_IndexError, "column %zd from byte %lld does not fit %zd bytes", column, (long long)place,
                     join->out.len);
        return -1;
    }
    return 0;
}

/* Every block has the same columns, and every span is of a block. */
static int check_blocks(const Join *join)
{
    for (Py_ssize_t place = 0; place < join->blocks * join->columns; place++) {
        const Py_buffer *mine = &join->sources[place], *first = &join->sources[place % join->columns];
        if (mine->itemsize <= 0 || mine->itemsize != first->itemsize || strcmp(mine->format, first->format)) {
            PyErr_Format(PyExc_TypeError, "column %zd has values of type %s in block %zd, of %s in block 0",
                         place % join->columns, mine->format, place / join->columns, first->format);
            return -1;
        }
    }
    for (Py_ssize_t span = 0; span < join->spans; span++) {
        int64_t block = numbers(&join->owner)[span];
        if (block < 0 || block >= join->blocks) {
            PyErr_Format(PyExc_IndexError, "span %zd is of block %lld, of %zd", span, (long long)block, join->blocks);
            return -1;
        }
    }
    return 0;
}

static int check(Join *join, Py_ssize_t sources)
{
    join->columns = join->places.len / (Py_ssize_t)sizeof(int64_t);
    join->spans = join->owner.len / (Py_ssize_t)sizeof(int64_t);
    join->past_caches = join->out.len >= LARGE_BATCH;
    if (join->starts.len != join->owner.len || join->ends.len != join->owner.len || !join->columns ||
        sources % join->columns) {
        PyErr_SetString(PyExc_ValueError, "owner, starts and ends have one number a span, sources places' columns a block");
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

/* Takes the buffers of a sequence of objects; how many it could, all of them if no error is set. */
static Py_ssize_t take_sources(PyObject *list, Py_buffer *views)
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
    Py_ssize_t taken = 0, count = PyList_Size(list);
    Join join = {.sources = PyMem_Calloc((size_t)count + 1, sizeof(Py_buffer))};
    Py_buffer *views[5] = {&join.out, &join.places, &join.owner, &join.starts, &join.ends};
    int held = 0;
    if (!join.sources)
        PyErr_NoMemory();
    else
        while (held < 5 && !PyObject_GetBuffer(objects[held], views[held], held ? PyBUF_SIMPLE : PyBUF_WRITABLE))
            held++;
    if (held == 5 && (taken = take_sources(list, join.sources)) == count && !check(&join, count)) {
        Py_BEGIN_ALLOW_THREADS
        copy_all(&join);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    while (taken)
        PyBuffer_Release(&join.sources[--taken]);
    while (held)
        PyBuffer_Release(views[--held]);
    PyMem_Free(join.sources);
    return result;
}

static PyMethodDef functions[] = {
    {"join_slices", join_slices, METH_VARARGS, "join_slices(out, places, sources, owner, starts, ends)"},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT, .m_name = "_copy_slices", .m_size = -1, .m_methods = functions,
};

PyMODINIT_FUNC PyInit__copy_slices(void)
{
    return PyModule_Create(&definition);
}
