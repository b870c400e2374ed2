//! Names of exports, and the choices and options of the command line that go by them.

use std::path::Path;

use ubcache_engine::Choice;

use crate::config::{Named, ReadOnly, ServeConfig, export_names};
use crate::failure::Failure;
use crate::open::precheck::{Member, Members};

/// Refuses options for exports that there are not.
pub(super) fn check_names(config: &ServeConfig, names: &[String]) -> Result<(), Failure> {
    config.clients.check_names(names)?;
    let ReadOnly::Some(given) = &config.read_only else { return Ok(()) };
    match given.iter().find(|given| !names.contains(given)) {
        None => Ok(()),
        Some(unknown) => {
            Err(Failure::usage(format_args!("--read-only={unknown}"), "there is no such export")
                .expected(format_args!("one of {}", names.join(", "))))
        }
    }
}

/// The names of the exports, none of them twice.
pub(super) fn names_of(members: &Members) -> Result<Vec<String>, Failure> {
    names_among(&members.backings.iter().collect::<Vec<_>>())
}

pub(super) fn names_among(members: &[&Member]) -> Result<Vec<String>, Failure> {
    let labels: Vec<String> = members.iter().map(|member| member.superblock.label_str()).collect();
    let volumes: Vec<Named<'_>> = labels
        .iter()
        .zip(members)
        .map(|(label, member)| Named { given: member.given.as_deref(), label, path: &member.path })
        .collect();
    let names = export_names(&volumes)?;
    // Clients may ask for each export by its UUID: no other one may have that for a name.
    for (index, (name, Member { path, .. })) in names.iter().zip(members.iter()).enumerate() {
        let of_uuid = members.iter().position(|other| other.superblock.uuid.to_string() == *name);
        if let Some(other) = of_uuid.filter(|other| *other != index) {
            return Err(Failure::refused(path, format_args!("its export would be named {name}"))
                .found(format_args!("the UUID of {}", members[other].path.display()))
                .expected("a name that is no UUID of another disk")
                .advice(format_args!("give it another name: -B NAME={}", path.display())));
        }
    }
    Ok(names)
}

/// Choices of the command line for disks that are not of one run with the cache.
pub(super) fn choices(
    config: &ServeConfig,
    members: &[&Member],
    names: &[String],
) -> Result<Vec<Option<Choice>>, Failure> {
    let default = config.drop_clean_cache.then_some(Choice::DropClean);
    let mut choices = vec![default; names.len()];
    let disks =
        config.believe_disk.iter().map(|name| ("--believe-disk", name, Choice::BelieveDisk));
    let caches =
        config.believe_cache.iter().map(|name| ("--believe-cache", name, Choice::BelieveCache));
    for (option, given, choice) in disks.chain(caches) {
        let is_it = |(name, it): (&String, &&Member)| given == name || it.path == Path::new(given);
        let at = names.iter().zip(members).position(is_it);
        let at = at.ok_or_else(|| {
            Failure::usage(format_args!("{option} {given}"), "there is no such disk")
                .expected(format_args!("one of {}, or a path after -B", names.join(", ")))
        })?;
        match choices[at] {
            Some(other) if Some(other) != default && other != choice => {
                return Err(Failure::usage(
                    format_args!("{option} {given}"),
                    "both choices are given",
                )
                .expected("one of --believe-disk and --believe-cache for a disk"));
            }
            _ => choices[at] = Some(choice),
        }
    }
    Ok(choices)
}
