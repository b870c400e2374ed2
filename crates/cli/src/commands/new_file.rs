//! A file that exists as a whole, or not at all; and never in the place of an input.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ubcache_daemon::Failure;
use ubcache_daemon::backing::{is_same_uri, is_uri};

/// Suffix of the name of an unfinished file.
const PARTIAL: &str = ".ubcache-partial";

/// A file that is being written under another name, in the same directory. If it is not finished,
/// it is removed; the next command overwrites the unfinished file of a killed one.
pub struct NewFile {
    path: PathBuf,
    temporary: PathBuf,
    out: Option<BufWriter<File>>,
    force: bool,
}

impl NewFile {
    /// Begins a file. One that is there already is refused, unless `force` is given and it is none
    /// of `needed`.
    pub fn create(path: &Path, force: bool, needed: &[&Path]) -> Result<NewFile, Failure> {
        refuse_needed(path, needed)?;
        refuse_existing(path, force)?;
        let mut name = path
            .file_name()
            .ok_or_else(|| Failure::could_not_run(path, "not the name of a file"))?
            .to_owned();
        name.push(OsString::from(PARTIAL));
        let temporary = path.with_file_name(name);
        let cannot = |error: &dyn std::fmt::Display| {
            Failure::could_not_run(
                path,
                format_args!("can't create {}: {error}", temporary.display()),
            )
            .advice("name a file in an existing directory that you may write to")
        };
        if std::fs::symlink_metadata(&temporary)
            .is_ok_and(|there| !there.is_file() || there.nlink() > 1)
        {
            return Err(cannot(&"the path is taken by something that is not a file"));
        }
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&temporary);
        let file = file.map_err(|error| cannot(&error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Failure::could_not_run(path, "another command is writing it"));
            }
            Err(TryLockError::Error(error)) => return Err(cannot(&error)),
        }
        let mut new = NewFile { path: path.to_owned(), temporary, out: None, force };
        file.set_len(0).map_err(|error| new.cannot_write(&error))?;
        new.out = Some(BufWriter::new(file));
        Ok(new)
    }

    /// Makes it a device of `bytes` bytes, to be opened at [`unfinished`](NewFile::unfinished).
    pub fn set_size(&mut self, bytes: u64) -> Result<(), Failure> {
        // Dropping the file drops its lock: the device is locked when it is opened.
        let file = self.out.take();
        let sized = file.map_or(Ok(()), |file| file.get_ref().set_len(bytes));
        sized.map_err(|error| self.cannot_write(&error))
    }

    /// Path of the file until it is finished.
    pub fn unfinished(&self) -> &Path {
        &self.temporary
    }

    /// Appends bytes, or writes them at the place of [`seek`](NewFile::seek); the error is text.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), String> {
        let Some(out) = &mut self.out else { return Ok(()) };
        out.write_all(bytes).map_err(|error| error.to_string())
    }

    /// Continues writing at a byte.
    pub fn seek(&mut self, at: u64) -> Result<(), String> {
        let Some(out) = &mut self.out else { return Ok(()) };
        out.seek(SeekFrom::Start(at)).map(|_| ()).map_err(|error| error.to_string())
    }

    /// Gives the file a length, makes it durable and gives it its name.
    pub fn finish_with(mut self, bytes: u64) -> Result<(), Failure> {
        let Some(out) = &mut self.out else { return self.finish() };
        let sized = out.flush().and_then(|()| out.get_ref().set_len(bytes));
        sized.map_err(|error| self.cannot_write(&error))?;
        self.finish()
    }

    /// Makes the file durable and gives it its name.
    pub fn finish(mut self) -> Result<(), Failure> {
        let written = match self.out.take() {
            Some(out) => out.into_inner().map_err(io::IntoInnerError::into_error),
            None => File::open(&self.temporary),
        };
        written.and_then(|file| file.sync_all()).map_err(|error| self.cannot_write(&error))?;
        refuse_existing(&self.path, self.force)?;
        std::fs::rename(&self.temporary, &self.path).map_err(|error| self.cannot_write(&error))?;
        let directory = self.path.parent().filter(|path| !path.as_os_str().is_empty());
        let directory = File::open(directory.unwrap_or(Path::new(".")));
        directory
            .and_then(|directory| directory.sync_all())
            .map_err(|error| self.cannot_write(&error))
    }

    /// The failure for a file that could not be written, and is not kept.
    pub fn cannot_write(&self, error: &dyn std::fmt::Display) -> Failure {
        Failure::refused(&self.path, format_args!("can't write it: {error}")).advice(
            "what was written of it was removed; make room, or name a file elsewhere, and run it \
             again",
        )
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // After `finish` there is nothing of this name.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

/// Finds the path of the same file or device, by whatever name.
pub fn same_as<'a>(path: &Path, others: &[&'a Path]) -> Option<&'a Path> {
    if is_uri(path) {
        return others.iter().find(|other| is_same_uri(path, other)).copied();
    }
    let there = std::fs::metadata(path).ok()?;
    let same = |other: &&&Path| {
        std::fs::metadata(other).is_ok_and(|other| {
            (other.dev(), other.ino()) == (there.dev(), there.ino())
                || other.rdev() != 0 && other.rdev() == there.rdev()
        })
    };
    others.iter().find(same).copied()
}

/// Refuses to write to what the command reads.
pub fn refuse_needed(path: &Path, needed: &[&Path]) -> Result<(), Failure> {
    match same_as(path, needed) {
        None => Ok(()),
        Some(other) => Err(Failure::could_not_run(path, "refusing to overwrite an input")
            .found(format_args!("the same as {}", other.display()))
            .expected("a file that does not exist yet")
            .advice("name another file; nothing was written")),
    }
}

/// Refuses to write a report over anything but an earlier one.
pub fn report_file(path: &Path, needed: &[&Path]) -> Result<NewFile, Failure> {
    refuse_needed(path, needed)?;
    let mut begins = [0; 4];
    let is_report = std::fs::metadata(path).is_ok_and(|there| there.is_file())
        && File::open(path).and_then(|mut file| file.read_exact(&mut begins)).is_ok()
        && &begins == b"{\n  ";
    let is_empty = std::fs::metadata(path).is_ok_and(|there| there.is_file() && there.len() == 0);
    if !is_report && !is_empty && path.exists() {
        return Err(Failure::could_not_run(path, "the file exists, and is no report")
            .expected("a file that does not exist yet, or an earlier report")
            .advice("name another file; nothing was written"));
    }
    NewFile::create(path, true, needed)
}

fn refuse_existing(path: &Path, force: bool) -> Result<(), Failure> {
    let Ok(there) = std::fs::metadata(path) else { return Ok(()) };
    let failure = Failure::could_not_run(path, "the file exists").expected("a new file");
    if !there.is_file() {
        return Err(failure.advice("write to a file, and copy that to the device"));
    }
    if !force && there.len() > 0 {
        return Err(failure.advice("name a file that does not exist yet, or remove this one"));
    }
    Ok(())
}
