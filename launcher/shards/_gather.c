/* Rows of tokens, gathered from mapped shards and widened on the way: one pass over the memory.
 *
 * numpy takes two (gather, then widen), and a call of its own for each shard. What is asked for here is described in
 * gather.py; reader.py does whatever this leaves, so that nothing is lost where it could not be compiled.
 *
 * No token is read that does not lie inside a buffer that Python holds, in a block that has been checked: by the
 * shard's own check, which is called from here for a block that nobody has checked yet.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

/* The loops below as every processor runs them, and as those of the last ten years do. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

/* gather.py has the same, and leaves out what was compiled before one of them changed. */
#define SIGNATURE "gather(out, windows, stride, row, starts, shards, token_bytes, block_bytes)"

/* What is told of a shard that is open, in a tuple. */
enum { FILE_BYTES, CHECKED, CHECK, TOLD };

typedef void (*Widen)(const void *restrict tokens, void *restrict row, Py_ssize_t width);

#define WIDEN(NAME, FROM, TO)                                                                      \
    FOR_EACH_PROCESSOR static void NAME(const void *restrict tokens, void *restrict row, Py_ssize_t width) \
    {                                                                                              \
        const FROM *restrict from = tokens;                                                        \
        TO *restrict to = row;                                                                     \
        for (Py_ssize_t place = 0; place < width; place++)                                         \
            to[place] = from[place];                                                               \
    }
WIDEN(uint16_to_int32, uint16_t, int32_t)
WIDEN(uint16_to_int64, uint16_t, int64_t)
WIDEN(int32_to_int32, int32_t, int32_t)
WIDEN(int32_to_int64, int32_t, int64_t)

static Widen choose(Py_ssize_t token_bytes, const Py_buffer *out)
{
    const char *format = out->format;
    if (!format || strlen(format) != 1 || !strchr("ilq", format[0]))
        return NULL;
    if (token_bytes == 2)
        return out->itemsize == 4 ? uint16_to_int32 : uint16_to_int64;
    if (token_bytes == 4)
        return out->itemsize == 4 ? int32_to_int32 : int32_to_int64;
    return NULL;
}

/* A buffer as gather can take it; 0 where it is another, which is no error. */
static int borrow(PyObject *array, Py_buffer *buffer, int ndim, int flags)
{
    if (PyObject_GetBuffer(array, buffer, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | flags) < 0) {
        PyErr_Clear();
        return 0;
    }
    if (buffer->ndim == ndim)
        return 1;
    PyBuffer_Release(buffer);
    return 0;
}

/* Have blocks [first, last] checked where nobody has; 0 with an exception where one is not what was written. */
static int are_sound(PyObject *shard, int64_t first, int64_t last)
{
    const char *flags = PyByteArray_AS_STRING(PyTuple_GET_ITEM(shard, CHECKED));
    for (int64_t block = first; block <= last; block++) {
        if (flags[block])
            continue;
        PyObject *done = PyObject_CallFunction(PyTuple_GET_ITEM(shard, CHECK), "LL", (long long)first, (long long)last);
        Py_XDECREF(done);
        return done != NULL;
    }
    return 1;
}

/* Where tokens [start, start + width) of the stream lie; a new reference in `held`. NULL where Python must look, or with
 * an exception. */
static const char *find(PyObject *shards, const int64_t *starts, Py_ssize_t num_shards, int64_t start, int64_t width,
                        int64_t token_bytes, int64_t block_bytes, Py_buffer *held)
{
    if (start < 0 || width > starts[num_shards] - start)
        return NULL;
    Py_ssize_t number = 0, behind = num_shards;
    while (behind - number > 1) {
        Py_ssize_t middle = number + (behind - number) / 2;
        if (starts[middle] <= start)
            number = middle;
        else
            behind = middle;
    }
    int64_t first = (start - starts[number]) * token_bytes, end = first + width * token_bytes;
    if (number >= PyList_GET_SIZE(shards)) /* a check has taken some away */
        return NULL;
    PyObject *shard = PyList_GET_ITEM(shards, number);
    if (!PyTuple_Check(shard) || PyTuple_GET_SIZE(shard) != TOLD || !PyByteArray_Check(PyTuple_GET_ITEM(shard, CHECKED)))
        return NULL;
    if (PyObject_GetBuffer(PyTuple_GET_ITEM(shard, FILE_BYTES), held, PyBUF_SIMPLE) < 0) {
        PyErr_Clear();
        return NULL;
    }
    int64_t first_block = first / block_bytes, last_block = (end - 1) / block_bytes;
    /* behind the end: it goes on in the next shard */
    if (end <= held->len && last_block < PyByteArray_GET_SIZE(PyTuple_GET_ITEM(shard, CHECKED))) {
        Py_INCREF(shard); /* what is called may put another in its place */
        int sound = are_sound(shard, first_block, last_block);
        Py_DECREF(shard);
        if (sound)
            return (const char *)held->buf + first;
    }
    PyBuffer_Release(held);
    return NULL;
}

/* Fill rows from `row` on until one must be left to Python: its number. -1 with an exception. */
static Py_ssize_t fill(const Py_buffer *out, const Py_buffer *windows, const Py_buffer *starts, int64_t stride, Py_ssize_t row,
                       PyObject *shards, int64_t token_bytes, int64_t block_bytes)
{
    Widen widen = choose((Py_ssize_t)token_bytes, out);
    Py_ssize_t num_rows = out->shape[0], width = out->shape[1], num_shards = starts->shape[0] - 1;
    if (!widen || windows->shape[0] != num_rows || windows->itemsize != 8 || starts->itemsize != 8 || block_bytes < 1 ||
        num_shards < 1 || PyList_GET_SIZE(shards) != num_shards || width < 1 || row < 0 || row >= num_rows)
        return row;
    Py_buffer *held = PyMem_Malloc((size_t)(num_rows - row) * sizeof *held);
    const char **tokens = PyMem_Malloc((size_t)(num_rows - row) * sizeof *tokens);
    Py_ssize_t found = 0;
    while (held && tokens && row + found < num_rows) {
        int64_t start;
        if (__builtin_mul_overflow(((const int64_t *)windows->buf)[row + found], stride, &start))
            break;
        tokens[found] = find(shards, starts->buf, num_shards, start, width, token_bytes, block_bytes, &held[found]);
        if (!tokens[found])
            break;
        found++;
    }
    if (found && !PyErr_Occurred()) {
        char *to = (char *)out->buf + row * width * out->itemsize;
        Py_BEGIN_ALLOW_THREADS /* the pages may have to come from the disk */
        for (Py_ssize_t place = 0; place < found; place++)
            widen(tokens[place], to + place * width * out->itemsize, width);
        Py_END_ALLOW_THREADS
    }
    for (Py_ssize_t place = 0; place < found; place++)
        PyBuffer_Release(&held[place]);
    PyMem_Free(tokens);
    PyMem_Free(held);
    return PyErr_Occurred() ? -1 : row + found;
}

static PyObject *gather(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t num_args)
{
    if (num_args != 8 || !PyList_Check(args[5])) {
        PyErr_SetString(PyExc_TypeError, SIGNATURE);
        return NULL;
    }
    int64_t stride = PyLong_AsLongLong(args[2]), token_bytes = PyLong_AsLongLong(args[6]);
    int64_t block_bytes = PyLong_AsLongLong(args[7]);
    Py_ssize_t row = PyLong_AsSsize_t(args[3]);
    if (PyErr_Occurred())
        return NULL;
    Py_buffer out, windows, starts;
    if (borrow(args[0], &out, 2, PyBUF_WRITABLE)) {
        if (borrow(args[1], &windows, 1, 0)) {
            if (borrow(args[4], &starts, 1, 0)) {
                row = fill(&out, &windows, &starts, stride, row, args[5], token_bytes, block_bytes);
                PyBuffer_Release(&starts);
            }
            PyBuffer_Release(&windows);
        }
        PyBuffer_Release(&out);
    }
    return PyErr_Occurred() ? NULL : PyLong_FromSsize_t(row);
}

static PyMethodDef METHODS[] = {
    {"gather", (PyCFunction)(void (*)(void))gather, METH_FASTCALL, SIGNATURE},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, .m_name = "_gather", .m_size = 0, .m_methods = METHODS};

PyMODINIT_FUNC PyInit__gather(void)
{
    return PyModuleDef_Init(&MODULE);
}
