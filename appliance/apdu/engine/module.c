/* The Python face of core.c (limited API of 3.11). What is of another type raises TypeError; what an item or an argument
 * holds that cannot be right is told by name (`engine_problem`), in place of the result.
 *
 * An engine is taken from the module's shelf and put back wiped, so that calls of several threads run side by side; a
 * batch renders without the GIL, straight into the bytes objects that it answers.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "core.h"

#include <openssl/crypto.h>

enum { SHELF = 64, ROUTE_FIELDS = 6, ORDER_FIELDS = 7 };

typedef struct {
    engine *shelf[SHELF];
    int count;
} state;

static engine *take(PyObject *module) {
    state *s = PyModule_GetState(module);
    engine *taken = s->count ? s->shelf[--s->count] : engine_new();
    if (!taken) PyErr_SetString(PyExc_MemoryError, "libcrypto gives no AES context");
    return taken;
}

static void put_back(PyObject *module, engine *e) {
    state *s = PyModule_GetState(module);
    engine_wipe(e);
    if (s->count < SHELF)
        s->shelf[s->count++] = e;
    else
        engine_free(e);
}

/* A result, or the name of what is wrong; a fault of libcrypto's raises. */
static PyObject *answer(engine_error error, const void *data, size_t length) {
    if (error == ENGINE_OK) return PyBytes_FromStringAndSize(data, (Py_ssize_t)length);
    if (error != ENGINE_LIBCRYPTO) return PyUnicode_FromString(engine_problem(error));
    PyErr_SetString(PyExc_RuntimeError, "libcrypto failed");
    return NULL;
}

/* Reading: converters for PyArg_ParseTuple too, to a span, an int64_t and an int */

static int as_span(PyObject *object, void *out) {
    char *data;
    Py_ssize_t length;
    if (!object || PyBytes_AsStringAndSize(object, &data, &length)) return 0;
    *(span *)out = (span){(const uint8_t *)data, (size_t)length};
    return 1;
}

static int as_int(PyObject *object, void *out) {
    int overflow;
    if (!object) return 0;
    long long value = PyLong_AsLongLongAndOverflow(object, &overflow);
    if (value == -1 && PyErr_Occurred()) return 0;
    *(int64_t *)out = overflow ? -1 : value; /* no number here can be negative */
    return 1;
}

static int as_small(PyObject *object, void *out) {
    int64_t value;
    if (!as_int(object, &value)) return 0;
    *(int *)out = value < 0 || value > 0xFFFF ? -1 : (int)value;
    return 1;
}

static int is_tuple(PyObject *object, Py_ssize_t size, const char *what) {
    if (PyTuple_Check(object) && PyTuple_Size(object) == size) return 1;
    PyErr_Format(PyExc_TypeError, "%s is a tuple of %zd", what, size);
    return 0;
}

static int as_route(PyObject *object, script_route *out) {
    return is_tuple(object, ROUTE_FIELDS, "a route") && as_span(PyTuple_GetItem(object, 0), &out->ssd_aid) &&
           as_span(PyTuple_GetItem(object, 1), &out->applet_aid) && as_small(PyTuple_GetItem(object, 2), &out->kvn) &&
           as_small(PyTuple_GetItem(object, 3), &out->level) && as_small(PyTuple_GetItem(object, 4), &out->mode) &&
           as_small(PyTuple_GetItem(object, 5), &out->key_type);
}

static int as_order(PyObject *object, script_order *out) {
    if (!is_tuple(object, ORDER_FIELDS, "an order") || !as_span(PyTuple_GetItem(object, 1), &out->package) ||
        !as_span(PyTuple_GetItem(object, 2), &out->host_challenge) ||
        !as_span(PyTuple_GetItem(object, 4), &out->enc) || !as_span(PyTuple_GetItem(object, 5), &out->mac))
        return 0;
    PyObject *opening = PyTuple_GetItem(object, 3);
    out->card_challenge = (span){NULL, 0};
    out->sequence_counter = 0;
    if (!(PyLong_Check(opening) ? as_int(opening, &out->sequence_counter) : as_span(opening, &out->card_challenge)))
        return 0;
    out->from_static = PyObject_IsTrue(PyTuple_GetItem(object, 6));
    return out->from_static >= 0;
}

/* Scripts */

typedef struct {
    script_order order;
    PyObject *made; /* the answer; in no list yet, where other threads could come by it */
    uint8_t *out;   /* its bytes, where the order was not refused */
    engine_error error;
} job;

static void render_all(engine *e, job *jobs, Py_ssize_t count, script_form form) {
    for (Py_ssize_t i = 0; i < count; i++)
        if (!jobs[i].error) jobs[i].error = script_render(e, &jobs[i].order, form, jobs[i].out);
}

/* The jobs of a batch, each with its refusal or the bytes object that it will be rendered into. */
static int prepare(PyObject *items, Py_ssize_t count, script_form form, job *jobs) {
    PyObject *seen = NULL; /* the route of the order before: a batch has few */
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PyTuple_GetItem(items, i);
        if (!as_order(item, &jobs[i].order)) return 0;
        PyObject *route = PyTuple_GetItem(item, 0);
        if (route == seen)
            jobs[i].order.route = jobs[i - 1].order.route;
        else if (!as_route(route, &jobs[i].order.route))
            return 0;
        seen = route;
        size_t size = 0;
        jobs[i].error = script_size(&jobs[i].order, form, &size);
        jobs[i].made = answer(jobs[i].error, NULL, size);
        if (!jobs[i].made) return 0;
        if (!jobs[i].error) jobs[i].out = (uint8_t *)PyBytes_AsString(jobs[i].made);
    }
    return 1;
}

/* The list of the answers, or NULL where libcrypto failed. */
static PyObject *answers_of(job *jobs, Py_ssize_t count) {
    for (Py_ssize_t i = 0; i < count; i++)
        if (jobs[i].error == ENGINE_LIBCRYPTO) return answer(ENGINE_LIBCRYPTO, NULL, 0);
    PyObject *answers = PyList_New(count);
    for (Py_ssize_t i = 0; answers && i < count; i++) {
        PyList_SetItem(answers, i, jobs[i].made);
        jobs[i].made = NULL;
    }
    return answers;
}

PyDoc_STRVAR(render_doc, "render(orders, form) -> list: for each order its script, or the name of what is wrong.");

static PyObject *render(PyObject *module, PyObject *args) {
    PyObject *given, *items, *answers = NULL;
    int form;
    if (!PyArg_ParseTuple(args, "Oi", &given, &form)) return NULL;
    if (form < 0 || form >= FORMS) {
        PyErr_Format(PyExc_ValueError, "there is no form %d", form);
        return NULL;
    }
    items = PySequence_Tuple(given);
    if (!items) return NULL;
    Py_ssize_t count = PyTuple_Size(items);
    job *jobs = PyMem_Calloc((size_t)count + 1, sizeof *jobs);
    engine *e = NULL;
    if (!jobs)
        PyErr_NoMemory();
    else if (prepare(items, count, (script_form)form, jobs) && (e = take(module))) {
        Py_BEGIN_ALLOW_THREADS
        render_all(e, jobs, count, (script_form)form);
        Py_END_ALLOW_THREADS
        put_back(module, e);
        answers = answers_of(jobs, count);
    }
    for (Py_ssize_t i = 0; jobs && i < count; i++) Py_XDECREF(jobs[i].made);
    PyMem_Free(jobs);
    Py_DECREF(items);
    return answers;
}

/* Sessions */

PyDoc_STRVAR(card_challenge_doc, "card_challenge(k_enc, sequence_counter, aid, mode) -> bytes, or the name of what is wrong.");

static PyObject *card_challenge(PyObject *module, PyObject *args) {
    span k_enc, aid;
    int64_t counter;
    int mode;
    uint8_t out[BLOCK];
    if (!PyArg_ParseTuple(args, "O&O&O&O&", as_span, &k_enc, as_int, &counter, as_span, &aid, as_small, &mode))
        return NULL;
    engine *e = take(module);
    if (!e) return NULL;
    engine_error error = engine_card_challenge(e, k_enc, counter, aid, mode, out);
    put_back(module, e);
    return answer(error, out, (size_t)mode);
}

PyDoc_STRVAR(session_keys_doc, "session_keys(k_enc, k_mac, host_challenge, card_challenge) -> (s_enc, s_mac, s_rmac), or "
                               "the name of what is wrong.");

static PyObject *session_keys(PyObject *module, PyObject *args) {
    span k[4];
    uint8_t keys[3][MAX_KEY];
    if (!PyArg_ParseTuple(args, "O&O&O&O&", as_span, &k[0], as_span, &k[1], as_span, &k[2], as_span, &k[3]))
        return NULL;
    engine *e = take(module);
    if (!e) return NULL;
    engine_error error = engine_session_keys(e, k[0], k[1], k[2], k[3], keys[0], keys[1], keys[2]);
    put_back(module, e);
    Py_ssize_t length = (Py_ssize_t)k[0].length;
    PyObject *made = error ? answer(error, NULL, 0)
                           : Py_BuildValue("(y#y#y#)", keys[0], length, keys[1], length, keys[2], length);
    OPENSSL_cleanse(keys, sizeof keys);
    return made;
}

PyDoc_STRVAR(verify_doc, "verify_card_cryptogram(s_mac, host_challenge, card_challenge, card_cryptogram) -> b'', or the "
                         "name of what is wrong.");

static PyObject *verify_card_cryptogram(PyObject *module, PyObject *args) {
    span k[4];
    if (!PyArg_ParseTuple(args, "O&O&O&O&", as_span, &k[0], as_span, &k[1], as_span, &k[2], as_span, &k[3]))
        return NULL;
    engine *e = take(module);
    if (!e) return NULL;
    engine_error error = engine_verify_card_cryptogram(e, k[0], k[1], k[2], k[3]);
    put_back(module, e);
    return answer(error, "", 0);
}

PyDoc_STRVAR(unwrap_doc,
             "unwrap(s_enc, s_mac, s_rmac, level, mode, commands, responses) -> list of plain responses; the last is the "
             "name of what is wrong where something is. commands begins with EXTERNAL AUTHENTICATE, responses behind it.");

static int unwrap_all(engine *e, channel *c, PyObject *commands, PyObject *responses, PyObject *answers) {
    uint8_t out[MAX_RESPONSE];
    size_t length = 0;
    span bytes;
    Py_ssize_t count = PyTuple_Size(responses);
    if (PyTuple_Size(commands) <= count) {
        PyErr_SetString(PyExc_ValueError, "there are more responses than wrapped commands");
        return 0;
    }
    if (!as_span(PyTuple_GetItem(commands, 0), &bytes)) return 0;
    engine_error error = channel_open(e, c, bytes);
    for (Py_ssize_t i = 0; i < count || error; i++) {
        if (!error) {
            if (!as_span(PyTuple_GetItem(commands, i + 1), &bytes)) return 0;
            error = channel_follow(e, c, bytes);
        }
        if (!error) {
            if (!as_span(PyTuple_GetItem(responses, i), &bytes)) return 0;
            error = channel_unwrap(e, c, bytes, out, &length);
        }
        PyObject *made = answer(error, out, length);
        int good = made && !PyList_Append(answers, made);
        Py_XDECREF(made);
        if (!good) return 0;
        if (error) break;
    }
    return 1;
}

static PyObject *unwrap(PyObject *module, PyObject *args) {
    PyObject *given, *answered, *commands, *responses, *answers = NULL;
    channel c = {.counter = 0};
    engine *e = NULL;
    int good = 0;
    if (!PyArg_ParseTuple(args, "O&O&O&O&O&OO", as_span, &c.s_enc, as_span, &c.s_mac, as_span, &c.s_rmac, as_small,
                          &c.level, as_small, &c.mode, &given, &answered))
        return NULL;
    commands = PySequence_Tuple(given);
    responses = commands ? PySequence_Tuple(answered) : NULL;
    if (responses && (answers = PyList_New(0)) && (e = take(module))) {
        good = unwrap_all(e, &c, commands, responses, answers);
        put_back(module, e);
    }
    Py_XDECREF(commands);
    Py_XDECREF(responses);
    if (good) return answers;
    Py_XDECREF(answers);
    return NULL;
}

/* Static keys */

PyDoc_STRVAR(kdf3_doc, "kdf3(master, constant, kdd, bits) -> bytes, or the name of what is wrong.");

static PyObject *kdf3(PyObject *module, PyObject *args) {
    span master, kdd;
    unsigned char constant;
    int bits;
    uint8_t out[MAX_KEY];
    if (!PyArg_ParseTuple(args, "O&bO&O&", as_span, &master, &constant, as_span, &kdd, as_small, &bits)) return NULL;
    engine *e = take(module);
    if (!e) return NULL;
    engine_error error = engine_kdf3(e, master, constant, kdd, bits, out);
    put_back(module, e);
    PyObject *made = answer(error, out, (size_t)bits / 8);
    OPENSSL_cleanse(out, sizeof out);
    return made;
}

PyDoc_STRVAR(kcv_doc, "kcv(key) -> 3 bytes, or the name of what is wrong.");

static PyObject *kcv(PyObject *module, PyObject *args) {
    span key;
    uint8_t out[KCV_LENGTH];
    if (!PyArg_ParseTuple(args, "O&", as_span, &key)) return NULL;
    engine *e = take(module);
    if (!e) return NULL;
    engine_error error = engine_kcv(e, key, out);
    put_back(module, e);
    return answer(error, out, sizeof out);
}

static void end(void *module) {
    state *s = PyModule_GetState(module);
    while (s && s->count) engine_free(s->shelf[--s->count]);
}

static PyMethodDef METHODS[] = {
    {"render", render, METH_VARARGS, render_doc},
    {"card_challenge", card_challenge, METH_VARARGS, card_challenge_doc},
    {"session_keys", session_keys, METH_VARARGS, session_keys_doc},
    {"verify_card_cryptogram", verify_card_cryptogram, METH_VARARGS, verify_doc},
    {"unwrap", unwrap, METH_VARARGS, unwrap_doc},
    {"kdf3", kdf3, METH_VARARGS, kdf3_doc},
    {"kcv", kcv, METH_VARARGS, kcv_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot SLOTS[] = {{0, NULL}};

static PyModuleDef DEFINITION = {
    PyModuleDef_HEAD_INIT, .m_name = "_native",  .m_doc = "See core.h; use appliance.apdu.engine.",
    .m_size = sizeof(state), .m_methods = METHODS, .m_slots = SLOTS, .m_free = end,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&DEFINITION); }
