"""A PKCS#11 module for tests that forwards to a real one: it records every call, and fails or holds one on demand.

    shim = Shim(directory)                       # `shim_module` is a fixture: the compiled module, once per worker
    environment = shim.environment(real)         # for the process that loads shim_module: module.environment
    shim.log()                                   # every Call of every process, begun or ended; never a PIN or a key
    shim.logins()
    shim.arm(Fault(CKR))                         # the next call of a process answers this code, and does nothing
    shim.arm(Fault(CKR, When.AFTER, Which(7)))   # the 7th from now does its work, and is reported failed
    shim.arm(Fault(End.KILL, When.BEFORE, Which(2, "C_DeriveKey", mechanism)))   # or HANG, or SEGV
    shim.arm(Fault(CKR, lasting=True))           # and every call after it, until shim.disarm()
    shim.armed                                   # False as soon as a process has come to it
    with shim.hold(Which(function="C_WrapKey")) as hold:
        pid = hold.wait()                        # stands before its work
        hold.release()

An appliance that runs can be given another plan at any time. Calls that the plan's function and mechanism leave out
are not counted; nor is C_GetFunctionList, which is not recorded.
"""

from .shim import AttributeAsked, AttributeIn, Call, End, Fault, Hold, Shim, When, Which, compile_module

__all__ = ["AttributeAsked", "AttributeIn", "Call", "End", "Fault", "Hold", "Shim", "When", "Which", "compile_module"]
