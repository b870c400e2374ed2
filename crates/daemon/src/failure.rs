//! Failures as a user sees them: the file or device, the value found, the value expected, the
//! remedy.

use std::fmt;
use std::path::Path;

/// Exit code of the process. The codes are part of the interface.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Code {
    /// Exit code 1: the command ran and was refused, or failed on the way.
    Refused = 1,
    /// Exit code 2: the command could not run: wrong usage, a path that can't be opened.
    CouldNotRun = 2,
    /// Exit code 3: no daemon answers.
    NoDaemon = 3,
    /// Exit code 4, of `status` only, whose 1 and 2 are states: the state could not be found out.
    NotKnown = 4,
    /// Exit code 5, of `serve` only: the set has failed, and nothing is served any more.
    SetFailed = 5,
}

/// A failure, as text for the user.
///
/// Built in the order in which it reads: `Failure::refused(path,
/// "…").found(…).expected(…).advice(…)`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// The exit code.
    pub code: Code,
    words: Box<Words>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Words {
    subject: String,
    what: String,
    found: Option<String>,
    expected: Option<String>,
    advice: Option<String>,
}

impl Failure {
    fn new(code: Code, subject: impl fmt::Display, what: impl fmt::Display) -> Failure {
        let (subject, what) = (subject.to_string(), what.to_string());
        Failure {
            code,
            words: Box::new(Words { subject, what, found: None, expected: None, advice: None }),
        }
    }

    /// `path` is not what it should be, or something on it failed.
    pub fn refused(path: &Path, what: impl fmt::Display) -> Failure {
        Failure::new(Code::Refused, path.display(), what)
    }

    /// A failure that no single file stands for.
    pub fn refused_because(subject: impl fmt::Display, what: impl fmt::Display) -> Failure {
        Failure::new(Code::Refused, subject, what)
    }

    /// The command can't even begin with `path`.
    pub fn could_not_run(path: &Path, what: impl fmt::Display) -> Failure {
        Failure::new(Code::CouldNotRun, path.display(), what)
    }

    /// The command line is wrong.
    pub fn usage(option: impl fmt::Display, what: impl fmt::Display) -> Failure {
        Failure::new(Code::CouldNotRun, option, what)
    }

    /// The same words with another exit code.
    #[must_use]
    pub fn with_code(mut self, code: Code) -> Failure {
        self.code = code;
        self
    }

    /// Adds what was found.
    #[must_use]
    pub fn found(mut self, found: impl fmt::Display) -> Failure {
        self.words.found = Some(found.to_string());
        self
    }

    /// Adds what should have been there.
    #[must_use]
    pub fn expected(mut self, expected: impl fmt::Display) -> Failure {
        self.words.expected = Some(expected.to_string());
        self
    }

    /// Adds one more thing that can be done about it.
    #[must_use]
    pub fn more_advice(mut self, advice: impl fmt::Display) -> Failure {
        self.words.advice = Some(match self.words.advice {
            Some(before) => format!("{before}. {advice}"),
            None => advice.to_string(),
        });
        self
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn advice(mut self, advice: impl fmt::Display) -> Failure {
        self.words.advice = Some(advice.to_string());
        self
    }
}

/// A line for each part; `{:#}`: all of it in one line, for the log.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.words.subject, self.words.what)?;
        if f.alternate() {
            let Words { found, expected, advice, .. } = &*self.words;
            let parts = [("found", found), ("expected", expected), ("to do", advice)];
            for (name, text) in parts.iter().filter_map(|(name, it)| Some((name, it.as_ref()?))) {
                write!(f, "; {name}: {text}")?;
            }
            return Ok(());
        }
        if let Some(found) = &self.words.found {
            write!(f, "\n  found:    {found}")?;
        }
        if let Some(expected) = &self.words.expected {
            write!(f, "\n  expected: {expected}")?;
        }
        if let Some(advice) = &self.words.advice {
            write!(f, "\n  to do:    {advice}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_text_has_found_expected_and_remedy() {
        let failure = Failure::refused(Path::new("disk.img"), "not a bcache device")
            .found("an ext4 file system")
            .expected("a bcache superblock")
            .advice("make one");
        assert_eq!(
            failure.to_string(),
            "disk.img: not a bcache device\n  found:    an ext4 file system\n  expected: a bcache \
             superblock\n  to do:    make one"
        );
    }
}
