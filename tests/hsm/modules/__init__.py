"""Three PKCS#11 modules: SoftHSM, NSS softokn, openCryptoki's soft token.

`provision.TOKENS` names them and makes throwaway tokens: private, side by side, with both PINs set and no objects.

    with TOKENS["nss"](tmp_path) as token:                # or the fixture `token`, which is each of them in turn
        token.module, token.pin, token.environment        # for [module] of the settings, and for the PIN
        token.run(sys.executable, "-P", "-m", "appliance", "hsm", "check", ...)   # subprocess.CompletedProcess[str]
        subprocess.Popen([*token.prefix, ...], env=token.variables)   # where it goes on for longer
        token.job("initialise", ...)                      # a function of `jobs` in a child, through JSON

A module is loaded by child processes alone, behind `token.prefix`: a process has one environment and one C_Initialize,
and openCryptoki works only in the mount, IPC and process namespaces that the prefix leads into. Files, sockets and the
network are the same on both sides. NSS wants its arguments (`token.module.arguments`).
"""
