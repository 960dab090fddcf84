/* Copies the slices of a batch in one call: no object for each slice, and without the interpreter's lock.

   A batch is larger than the caches, so its lines are written past them (streaming stores) where the processor can: an
   ordinary store first reads the line that it is about to overwrite, which is half as much traffic again.
   Meaning and limits: longbatch.loaders.slices, which has the same function in NumPy. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define LINE 64
#define LARGE_BATCH (4 << 20) /* bytes; a smaller batch may still be in the caches when it is used */
#define LARGE_SLICE 1024

enum { SOURCE, FIRST, TO, SIZE, FIELDS };

static void copy_past_caches(char *to, const char *from, size_t size)
{
#ifdef __SSE2__
    size_t head = (size_t)(-(uintptr_t)to) % LINE;
    memcpy(to, from, head);
    to += head, from += head, size -= head;
    for (; size >= LINE; to += LINE, from += LINE, size -= LINE) {
        __m128i a = _mm_loadu_si128((const __m128i *)from), b = _mm_loadu_si128((const __m128i *)(from + 16));
        __m128i c = _mm_loadu_si128((const __m128i *)(from + 32)), d = _mm_loadu_si128((const __m128i *)(from + 48));
        _mm_stream_si128((__m128i *)to, a), _mm_stream_si128((__m128i *)(to + 16), b);
        _mm_stream_si128((__m128i *)(to + 32), c), _mm_stream_si128((__m128i *)(to + 48), d);
    }
#endif
    memcpy(to, from, size);
}

static void copy_all(char *out, Py_ssize_t out_size, const Py_buffer *sources, const int64_t *move, Py_ssize_t moves)
{
    for (; moves--; move += FIELDS) {
        const char *from = (const char *)sources[move[SOURCE]].buf + move[FIRST];
        if (out_size >= LARGE_BATCH && move[SIZE] >= LARGE_SLICE)
            copy_past_caches(out + move[TO], from, (size_t)move[SIZE]);
        else
            memcpy(out + move[TO], from, (size_t)move[SIZE]);
    }
#ifdef __SSE2__
    _mm_sfence();
#endif
}

/* Whether [first, first + size) lies in [0, length). */
static int inside(int64_t first, int64_t size, Py_ssize_t length)
{
    return first >= 0 && size >= 0 && first <= length && size <= length - first;
}

static int check(Py_ssize_t out_size, const Py_buffer *sources, Py_ssize_t count, const Py_buffer *moves)
{
    if (moves->len % (FIELDS * (Py_ssize_t)sizeof(int64_t))) {
        PyErr_Format(PyExc_ValueError, "moves have %zd bytes; give (n, 4) numbers of 64 bits", moves->len);
        return -1;
    }
    const int64_t *move = moves->buf, *end = move + moves->len / (Py_ssize_t)sizeof(int64_t);
    for (Py_ssize_t row = 0; move < end; move += FIELDS, row++) {
        if (!inside(move[SOURCE], 1, count) || !inside(move[TO], move[SIZE], out_size) ||
            !inside(move[FIRST], move[SIZE], sources[move[SOURCE]].len)) {
            PyErr_Format(PyExc_IndexError, "move %zd: %lld bytes of source %lld from %lld to %lld lie outside",
                         row, (long long)move[SIZE], (long long)move[SOURCE], (long long)move[FIRST], (long long)move[TO]);
            return -1;
        }
    }
    return 0;
}

/* Fills views with the buffers of a list; how many it took, all of them if no error is set. */
static Py_ssize_t take_buffers(PyObject *list, Py_buffer *views, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++)
        if (PyObject_GetBuffer(PyList_GetItem(list, i), &views[i], PyBUF_SIMPLE))
            return i;
    return count;
}

static PyObject *copy_slices(PyObject *module, PyObject *arguments)
{
    PyObject *out_object, *list, *moves_object, *result = NULL;
    if (!PyArg_ParseTuple(arguments, "OO!O", &out_object, &PyList_Type, &list, &moves_object))
        return NULL;
    Py_buffer out, moves;
    if (PyObject_GetBuffer(out_object, &out, PyBUF_WRITABLE))
        return NULL;
    if (PyObject_GetBuffer(moves_object, &moves, PyBUF_SIMPLE)) {
        PyBuffer_Release(&out);
        return NULL;
    }
    Py_ssize_t count = PyList_Size(list), taken = 0;
    Py_buffer *sources = PyMem_Calloc((size_t)count + 1, sizeof(Py_buffer));
    if (!sources)
        PyErr_NoMemory();
    else if ((taken = take_buffers(list, sources, count)) == count && !check(out.len, sources, count, &moves)) {
        Py_BEGIN_ALLOW_THREADS
        copy_all(out.buf, out.len, sources, moves.buf, moves.len / (FIELDS * (Py_ssize_t)sizeof(int64_t)));
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    while (taken--)
        PyBuffer_Release(&sources[taken]);
    PyMem_Free(sources);
    PyBuffer_Release(&moves);
    PyBuffer_Release(&out);
    return result;
}

static PyMethodDef functions[] = {
    {"copy_slices", copy_slices, METH_VARARGS, "copy_slices(out, sources, moves): see longbatch.loaders.slices"},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT, .m_name = "_slices", .m_size = -1, .m_methods = functions,
};

PyMODINIT_FUNC PyInit__slices(void)
{
    return PyModule_Create(&definition);
}
