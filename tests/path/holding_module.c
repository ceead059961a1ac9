/* A PKCS#11 module for tests: it forwards to a real one, can hold a call before it acts, and counts logins.
 *
 * TEST_P11_REAL names the real module, TEST_P11_HOLD a directory with two FIFOs, "held" and "released", whose other
 * ends the test holds open. A file named after a call ("wrap", "keypair_rsa") arms the hold once: the next such call
 * removes the file, writes its process id into "held", so that the test knows who stands inside it, and goes on when
 * "released" gives a byte or its end. "logins" gets a byte for each C_Login, whatever its outcome. */
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

static const char *in_directory(char path[PATH_MAX], const char *name) {
    const char *directory = getenv("TEST_P11_HOLD");
    if (!directory || snprintf(path, PATH_MAX, "%s/%s", directory, name) >= PATH_MAX) abort();
    return path;
}

static void hold(const char *call) {
    char path[PATH_MAX], line[16];
    if (unlink(in_directory(path, call)) != 0) return;
    int fifo = open(in_directory(path, "held"), O_WRONLY);
    int length = snprintf(line, sizeof line, "%d\n", (int)getpid());
    if (fifo < 0 || write(fifo, line, length) != length) abort();
    close(fifo);
    fifo = open(in_directory(path, "released"), O_RDONLY);
    if (fifo < 0 || read(fifo, line, 1) < 0) abort();
    close(fifo);
}

static CK_RV login(CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_BYTE *pin, CK_ULONG length) {
    char path[PATH_MAX];
    int file = open(in_directory(path, "logins"), O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (file < 0 || write(file, ".", 1) != 1) abort();
    close(file);
    return real->C_Login(session, user, pin, length);
}

static CK_RV wrap_key(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE wrapping,
                      CK_OBJECT_HANDLE key, CK_BYTE *wrapped, CK_ULONG *length) {
    hold("wrap");
    return real->C_WrapKey(session, mechanism, wrapping, key, wrapped, length);
}

static CK_RV generate_key_pair(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_ATTRIBUTE *public,
                               CK_ULONG public_count, CK_ATTRIBUTE *private, CK_ULONG private_count,
                               CK_OBJECT_HANDLE *public_key, CK_OBJECT_HANDLE *private_key) {
    if (mechanism->mechanism == CKM_RSA_PKCS_KEY_PAIR_GEN) hold("keypair_rsa");
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
        list.C_Login = login;
        list.C_WrapKey = wrap_key;
        list.C_GenerateKeyPair = generate_key_pair;
    }
    *answer = &list;
    return CKR_OK;
}
