/* A PKCS#11 module for tests that forwards to a real one and can be told to hold a call before it acts.
 *
 * TEST_P11_REAL names the real module, TEST_P11_HOLD a directory. A file "C_WrapKey" or "C_GenerateKeyPair" in it arms
 * the hold once: the next such call removes the file, writes its name into the FIFO "held" (so the reader knows that
 * the process stands inside the call), and never returns. */
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <p11-kit/pkcs11.h>

static CK_FUNCTION_LIST list;
static CK_FUNCTION_LIST *real;

static void hold(const char *function) {
    const char *directory = getenv("TEST_P11_HOLD");
    char path[PATH_MAX];
    if (!directory) return;
    snprintf(path, sizeof path, "%s/%s", directory, function);
    if (unlink(path) != 0) return;
    snprintf(path, sizeof path, "%s/held", directory);
    int fifo = open(path, O_WRONLY);
    if (fifo < 0 || write(fifo, function, strlen(function)) < 0) abort();
    close(fifo);
    for (;;) pause();
}

static CK_RV wrap_key(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE wrapping,
                      CK_OBJECT_HANDLE key, CK_BYTE *wrapped, CK_ULONG *length) {
    hold("C_WrapKey");
    return real->C_WrapKey(session, mechanism, wrapping, key, wrapped, length);
}

static CK_RV generate_key_pair(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_ATTRIBUTE *public,
                               CK_ULONG public_count, CK_ATTRIBUTE *private, CK_ULONG private_count,
                               CK_OBJECT_HANDLE *public_key, CK_OBJECT_HANDLE *private_key) {
    hold("C_GenerateKeyPair");
    return real->C_GenerateKeyPair(session, mechanism, public, public_count, private, private_count, public_key,
                                   private_key);
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST **answer) {
    if (!real) {
        const char *path = getenv("TEST_P11_REAL");
        void *library = path ? dlopen(path, RTLD_NOW) : NULL;
        CK_C_GetFunctionList get = library ? (CK_C_GetFunctionList)dlsym(library, "C_GetFunctionList") : NULL;
        if (!get || get(&real) != CKR_OK) return CKR_GENERAL_ERROR;
        list = *real;
        list.C_WrapKey = wrap_key;
        list.C_GenerateKeyPair = generate_key_pair;
    }
    *answer = &list;
    return CKR_OK;
}
