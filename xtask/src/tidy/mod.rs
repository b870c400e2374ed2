//! `cargo xtask tidy`: what no compiler checks and every reader notices (STYLE.md).
//!
//! | module | checks |
//! |---|---|
//! | [`width`] | lines of code and prose have at most 100 columns |
//! | [`openings`] | comments begin with a noun or a verb |
//! | [`pointers`] | links, files and `file:function` pointers of documents lead somewhere |
//! | [`subjects`] | commits have short imperative subjects |
//! | [`tables`] | the table of a folder names its modules, and all of them |
//! | [`spelling`] | codespell finds nothing |

mod openings;
mod pointers;
mod spelling;
mod subjects;
mod tables;
mod width;

use std::fmt;
use std::process::Command;

/// A defect that the checks found.
pub struct Finding {
    /// `file:line`, or a commit.
    place: String,
    message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// A tracked file and its text.
pub struct Source {
    path: String,
    text: String,
}

impl Source {
    fn finding(&self, line: usize, message: impl Into<String>) -> Finding {
        Finding { place: format!("{}:{line}", self.path), message: message.into() }
    }

    fn is_code(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn is_document(&self) -> bool {
        self.path.ends_with(".md")
    }
}

/// Checks the tracked files and the commits; `true` if nothing was found.
pub fn run() -> bool {
    let Some(paths) = git(&["ls-files"]) else {
        println!("xtask: tidy: SKIPPED: `git ls-files` does not run here");
        return true;
    };
    let paths: Vec<String> = paths.lines().map(str::to_owned).collect();
    let texts = paths.iter().filter(|path| path.ends_with(".rs") || path.ends_with(".md"));
    let sources: Vec<Source> = texts
        .filter_map(|path| {
            Some(Source { path: path.clone(), text: std::fs::read_to_string(path).ok()? })
        })
        .collect();
    let mut findings = width::check(&sources);
    findings.extend(openings::check(&sources));
    findings.extend(pointers::check(&sources, &paths));
    findings.extend(subjects::check());
    findings.extend(tables::check(&sources));
    findings.extend(spelling::check(&paths));
    for finding in &findings {
        println!("{finding}");
    }
    println!("xtask: tidy: {} findings in {} files", findings.len(), sources.len());
    findings.is_empty()
}

/// Standard output of git, if it succeeds.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
