//! Commands that are killed when they are about to take their n-th step, which changes something.
//! strace sends the signal, so that release builds need no code for it.

use std::process::Command;

use super::tool;

/// System calls that change files, or hand changes to the kernel.
const STEPS: &str = "write,writev,pwrite64,pwritev,pwritev2,fsync,fdatasync,link,linkat,unlink,\
                     unlinkat,rename,mkdir,fallocate,ftruncate,io_uring_enter";

/// The command under strace, which kills it when one of its threads is about to take its n-th step.
pub fn killed_at(n: u64, command: &Command) -> Command {
    let mut strace = tool("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={STEPS}"), "-e"]);
    strace.arg(format!("inject={STEPS}:signal=SIGKILL:when={n}"));
    strace.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        strace.env(name, value.expect("it is set"));
    }
    strace
}

/// Runs a command that is killed at its n-th step; false if it has fewer, and has done its work.
pub fn is_killed_at(n: u64, command: &Command) -> bool {
    let output = killed_at(n, command).output().expect("strace runs");
    match output.status.code() {
        Some(0) => false,
        Some(code) => {
            panic!("step {n}: exit code {code}: {}", String::from_utf8_lossy(&output.stderr))
        }
        None => true,
    }
}
