//! The files of a configuration, and what no two of them may have: a name, a device, an address.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ubcache_format::Uuid;

use super::devices::{Lookup, Use, look_at};
use super::fault::{Fault, Place};
use super::set_file::SetFile;
use crate::backing::{BackingName, is_uri};
use crate::config::{NbdAddress, NotFound, Origin, ServeConfig};
use crate::failure::Failure;

/// Directory of configuration files.
pub const DEFAULT_DIRECTORY: &str = "/etc/ubcache";

/// The content of some files.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    /// The sets whose files are good, in the order of their names.
    pub sets: Vec<SetFile>,
    /// The faults of all files.
    pub faults: Vec<Fault>,
    /// The files.
    pub files: Vec<PathBuf>,
}

/// A set whose devices were looked for.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// Its file.
    pub set: SetFile,
    /// The configuration to serve it by; or the reason why it can't be served.
    pub serve: Result<ServeConfig, Failure>,
}

impl Configuration {
    /// Reads files, and all `*.toml` of directories.
    pub fn read(paths: &[PathBuf]) -> Configuration {
        let mut all = Configuration::default();
        for path in paths {
            match files_of(path) {
                Ok(files) => all.files.extend(files),
                Err(error) => {
                    all.faults.push(Fault::of_file(path, format_args!("can't be read: {error}")));
                }
            }
        }
        for file in all.files.clone() {
            let text = match std::fs::read_to_string(&file) {
                Ok(text) => text,
                Err(error) => {
                    all.faults.push(Fault::of_file(&file, format_args!("can't be read: {error}")));
                    continue;
                }
            };
            match SetFile::parse(&file, &text) {
                Ok(set) => all.add(set),
                Err(faults) => all.faults.extend(faults),
            }
        }
        all
    }

    fn add(&mut self, set: SetFile) {
        match self.sets.iter().find(|other| other.name == set.name) {
            None => self.sets.push(set),
            Some(other) => self.faults.push(Fault::of_file(
                &set.file,
                format_args!(
                    "there is a set \"{}\" already, of {}",
                    set.name,
                    other.file.display()
                ),
            )),
        }
    }

    /// Looks for the devices of all sets. A set that names a device or an address of another one is
    /// a fault, and left out.
    pub fn resolve(&mut self, devices: &Lookup) -> Vec<Resolved> {
        let mut taken = Taken::default();
        let mut resolved = Vec::new();
        for set in std::mem::take(&mut self.sets) {
            let (serve, faults) = resolve(&set, devices, &mut taken);
            if faults.is_empty() {
                self.sets.push(set.clone());
                resolved.push(Resolved { set, serve });
            }
            self.faults.extend(faults);
        }
        resolved
    }

    /// The files with faults, and the first fault of each.
    pub fn first_faults(&self) -> Vec<(PathBuf, String)> {
        let mut all: Vec<(PathBuf, String)> = Vec::new();
        for fault in &self.faults {
            if !all.iter().any(|(file, _)| *file == fault.file) {
                all.push((fault.file.clone(), fault.to_string()));
            }
        }
        all
    }
}

fn files_of(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    if !std::fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let file = entry?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".toml") && !name.starts_with('.') {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// Devices and addresses that files have named, with the first place of each.
#[derive(Default)]
struct Taken {
    paths: BTreeMap<PathBuf, String>,
    uuids: BTreeMap<Uuid, String>,
    addresses: BTreeMap<String, String>,
}

impl Taken {
    /// Takes a device for a place; the place that has it already otherwise.
    fn device(&mut self, path: &Path, place: &str) -> Result<(), String> {
        let uri = BackingName::parse(path).ok().and_then(|name| name.uri());
        let real = uri.map(PathBuf::from);
        let real = real.or_else(|| std::fs::canonicalize(path).ok());
        let real = real.unwrap_or_else(|| path.to_owned());
        if let Some(other) = self.paths.get(&real) {
            return Err(format!("{} is the device of {other} as well", path.display()));
        }
        self.paths.insert(real, place.to_owned());
        // A remote disk may be served by this process, and its server may take one client only.
        if is_uri(path) {
            return Ok(());
        }
        let Some(found) = look_at(path) else { return Ok(()) };
        if let Some(other) = self.uuids.get(&found.uuid) {
            return Err(format!(
                "{} has the UUID {} in its superblock, as the device of {other}: one is a copy of \
                 the other, and only one can be served",
                path.display(),
                found.uuid
            ));
        }
        self.uuids.insert(found.uuid, place.to_owned());
        Ok(())
    }
}

fn resolve(
    set: &SetFile,
    devices: &Lookup,
    taken: &mut Taken,
) -> (Result<ServeConfig, Failure>, Vec<Fault>) {
    let mut faults = Vec::new();
    let place = |key: &str, place: Place| {
        format!("{key} in {}:{}:{}", set.file.display(), place.line, place.column)
    };
    let mut serve = ServeConfig {
        origin: Some(Origin { set: set.name.clone(), file: set.file.clone() }),
        ..set.serve.clone()
    };
    let mut failure = None;
    let (text, at) = &set.cache;
    match devices.find(text, Use::Cache) {
        Ok(path) => {
            if let Err(why) = taken.device(&path, &place("cache", *at)) {
                faults.push(Fault::at(&set.file, *at, format_args!("cache: {why}")));
            }
            serve.cache = Some(path);
        }
        // The start says so.
        Err(_) if serve.cache_optional => serve.cache = Some(text.into()),
        Err(why) => failure = Some(why),
    }
    for volume in &set.volumes {
        let (text, at) = &volume.backing;
        serve.names.push(Some(volume.name.clone()));
        match devices.find(text, Use::Backing) {
            Ok(path) => {
                let named = place(&format!("the volume {}", volume.name), *at);
                if let Err(why) = taken.device(&path, &named) {
                    faults.push(Fault::at(&set.file, *at, format_args!("backing: {why}")));
                }
                serve.backings.push(path);
            }
            Err(why) => {
                let path = PathBuf::from(text);
                serve.backings.push(path.clone());
                serve.not_found.push(NotFound { path, why, optional: volume.optional });
            }
        }
    }
    for guests in &set.serve.vhost_user {
        let key = NbdAddress::Unix(guests.path.clone()).to_string();
        let export = guests.export.as_deref().unwrap_or_default();
        let here = format!("export of the volume {export} in {}", set.file.display());
        if let Some(other) = taken.addresses.insert(key, here) {
            let path = guests.path.display();
            let what = format_args!("export: {path} is the address of {other} as well");
            faults.push(Fault::of_file(&set.file, what));
        }
    }
    for address in &set.serve.nbd {
        let key = match address {
            NbdAddress::Tcp(address) | NbdAddress::Tls(address) if address.port() == 0 => continue,
            address => address.to_string(),
        };
        let here = place("nbd", set.nbd_place);
        if let Some(other) = taken.addresses.get(&key) {
            let what = format_args!("nbd: {key} is the address of {other} as well");
            faults.push(Fault::at(&set.file, set.nbd_place, what));
        } else {
            taken.addresses.insert(key, here);
        }
    }
    (failure.map_or(Ok(serve), Err), faults)
}
