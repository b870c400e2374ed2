//! A file that is there as a whole, or not at all.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use ubcache_daemon::Failure;

/// A file that is being written under another name, in the same directory. If it is not finished, nothing stays.
pub struct NewFile {
    path: PathBuf,
    temporary: PathBuf,
    out: Option<BufWriter<File>>,
    force: bool,
}

impl NewFile {
    /// Begins a file. One that is there already is refused, unless `force` is given.
    pub fn create(path: &Path, force: bool) -> Result<NewFile, Failure> {
        refuse_existing(path, force)?;
        let name = path.file_name().ok_or_else(|| Failure::could_not_run(path, "not the name of a file"))?;
        let temporary = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary).map_err(|error| {
            Failure::could_not_run(path, format_args!("can't create {}: {error}", temporary.display()))
        })?;
        Ok(NewFile { path: path.to_owned(), temporary, out: Some(BufWriter::new(file)), force })
    }

    /// Appends bytes; the error is in words.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), String> {
        let Some(out) = &mut self.out else { return Ok(()) };
        out.write_all(bytes).map_err(|error| error.to_string())
    }

    /// Makes the file durable and gives it its name.
    pub fn finish(mut self) -> Result<(), Failure> {
        let cannot =
            |error: std::io::Error| Failure::refused(&self.path, format_args!("can't write it: {error}"));
        let Some(out) = self.out.take() else { return Ok(()) };
        out.into_inner().map_err(|error| cannot(error.into_error()))?.sync_all().map_err(cannot)?;
        refuse_existing(&self.path, self.force)?;
        std::fs::rename(&self.temporary, &self.path).map_err(cannot)?;
        let directory = self.path.parent().filter(|path| !path.as_os_str().is_empty());
        let directory = File::open(directory.unwrap_or(Path::new(".")));
        directory.and_then(|directory| directory.sync_all()).map_err(cannot)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // After `finish` there is nothing of this name.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

fn refuse_existing(path: &Path, force: bool) -> Result<(), Failure> {
    let Ok(there) = std::fs::metadata(path) else { return Ok(()) };
    if !there.is_file() {
        return Err(Failure::could_not_run(path, "there is something already").expected("a new file"));
    }
    if !force {
        let advice = "name a file that does not exist yet, or overwrite this one with --force";
        return Err(Failure::could_not_run(path, "there is something already").advice(advice));
    }
    Ok(())
}
