//! The question to a program if it can go on, and its answer: before anything is changed. It looks
//! at the superblocks and certificates, and at the ways of I/O that it has.
//!
//! `PROGRAM upgrade-check -- serve …` gets the question on standard input, and prints the answer,
//! if it is a yes. Any other end of the program is a no.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::FORMAT;
use super::heritage::VARIABLE;
use super::state::State;
use crate::config::ServeConfig;
use crate::open::preconditions::can_serve;

/// Name of the command that is asked.
pub const COMMAND: &str = "upgrade-check";
/// Time that a program has for its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// The question.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Question {
    /// Form of the state.
    pub format: u32,
    /// Version of the program that asks.
    pub version: String,
    /// The devices and sockets.
    pub state: State,
}

/// A yes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Yes {
    format: u32,
    version: String,
}

/// The answer of this program: text to print, or the reason why it can't go on. `config`: by the
/// command line of the program that asks.
pub fn answer(question: &str, config: &ServeConfig) -> Result<String, String> {
    /// The part that every form has.
    #[derive(Deserialize)]
    struct Form {
        format: u32,
        version: String,
    }
    let unreadable = |error| format!("the question is unreadable: {error}");
    let Form { format, version } = serde_json::from_str(question).map_err(unreadable)?;
    if format != FORMAT {
        return Err(format!(
            "version {version} hands over in form {format}; this is version {}, which knows form \
             {FORMAT}",
            env!("CARGO_PKG_VERSION")
        ));
    }
    let question: Question = serde_json::from_str(question).map_err(unreadable)?;
    can_serve(config, &question.state).map_err(|failure| format!("{failure:#}"))?;
    let yes = Yes { format: FORMAT, version: env!("CARGO_PKG_VERSION").to_owned() };
    serde_json::to_string(&yes).map_err(|error| error.to_string())
}

/// Asks a program if it can go on with these arguments. Blocks until it has answered, up to a
/// limit. Returns its version.
pub fn ask(program: &Path, arguments: &[OsString], state: State) -> Result<String, String> {
    let name = program.display();
    let mut child = Command::new(program)
        .arg(COMMAND)
        .arg("--")
        .args(arguments)
        .env_remove(VARIABLE)
        // Messages to systemd come from the daemon alone.
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{name} can't be run: {error}"))?;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let question = Question { format: FORMAT, version, state };
    if let (Some(mut stdin), Ok(question)) = (child.stdin.take(), serde_json::to_string(&question))
    {
        // A program that does not read it does not answer it either.
        let _ = stdin.write_all(question.as_bytes());
    }
    let said = child.stdout.take().map(text_of);
    let complained = child.stderr.take().map(text_of);
    let status = end_of(&mut child).map_err(|why| format!("{name} {COMMAND}: {why}"))?;
    let text = |from: Option<Receiver<String>>| {
        from.and_then(|from| from.recv_timeout(Duration::from_secs(1)).ok()).unwrap_or_default()
    };
    let (said, complained) = (text(said), text(complained));
    if !status.success() {
        let why = match complained.trim() {
            "" => status.to_string(),
            why => format!("{status}: {why}"),
        };
        return Err(format!("{name} refuses: {why}"));
    }
    match serde_json::from_str::<Yes>(&said) {
        Ok(yes) if yes.format == FORMAT => Ok(yes.version),
        _ => Err(format!("{name} is no program that can take over: it does not answer a question")),
    }
}

/// Waits for the end of a program; one that takes too long is killed.
fn end_of(child: &mut Child) -> Result<ExitStatus, String> {
    let end = Instant::now() + PATIENCE;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) => {
                // It may have ended by itself meanwhile.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("no answer within {} s", PATIENCE.as_secs()));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// The text out of a pipe, up to a limit; from another thread, as whoever has the pipe may keep it
/// open.
fn text_of(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = sync_channel(1);
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // Text before an error counts.
        let _ = pipe.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes);
        // Nobody waits for it any more if it comes too late.
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_do_not_say_yes_are_refused() {
        for (program, why) in [
            ("/bin/false", "refuses"),
            ("/bin/true", "does not answer"),
            ("/does/not/exist", "can't be run"),
            ("/etc/passwd", "can't be run"),
            ("/", "can't be run"),
            ("/bin/echo", "does not answer"),
        ] {
            let refused =
                ask(Path::new(program), &[], State::default()).expect_err("it is no daemon");
            assert!(refused.contains(why), "{program}: {refused}");
        }
    }

    #[test]
    fn question_of_another_form_is_answered_with_both() {
        let config = ServeConfig::default();
        let other = format!(r#"{{"format":{},"version":"9.8.7","new":1}}"#, FORMAT + 1);
        let refused = answer(&other, &config).expect_err("a form that is not known");
        assert!(refused.contains("9.8.7") && refused.contains("form 3"), "{refused}");
        assert!(answer("", &config).is_err() && answer("{}", &config).is_err());
    }
}
