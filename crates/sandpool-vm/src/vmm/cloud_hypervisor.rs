//! Cloud Hypervisor, over its API socket.
//!
//! Paths, fields and states are those of its `vmm/src/api/openapi/cloud-hypervisor.yaml` (version 53.0, whose API calls itself 0.3.0); what a
//! snapshot has in it is said in its `docs/snapshot_restore.md`. Its devices are on virtio-pci; its own filter of system calls is on.
//!
//! A template's memory is a file that it shares: of such memory it writes nothing (`vmm/src/memory_manager.rs`), and machines that go on
//! from the template have the same memory from the template's file, each privately. That is said in the snapshot's `config.json`, which its
//! documentation lets be changed. Other memory it writes to a file, `memory-ranges`.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::api::Api;
use super::{Begin, INITRD, KERNEL, Kind, Orders, Parts, Place, Running, Vmm, saved, template, told};

/// The numbers that its descriptors get.
const IMAGE: i32 = 3;
/// The template's file.
const MEMORY: i32 = 4;

/// The only zone of a machine's memory that has a file.
const ZONE: &str = "memory";

/// In a snapshot: what the machine is, what its devices are like, and its memory.
const CONFIG: &str = "config.json";
const STATE: &str = "state.json";
const RANGES: &str = "memory-ranges";

/// Cloud Hypervisor.
#[derive(Clone, Debug)]
pub(super) struct CloudHypervisor {
    /// Where it is.
    pub(super) place: Place,
}

/// A request's path.
fn call(name: &str) -> String {
    format!("/api/v1/{name}")
}

fn api_of(running: &mut Running) -> io::Result<&mut Api> {
    match &mut running.orders {
        Orders::Api(api, _) => Ok(api),
        Orders::Qemu(_) => Err(io::ErrorKind::InvalidInput.into()),
    }
}

impl CloudHypervisor {
    fn path(&self, name: &str) -> PathBuf {
        self.place.work.join(name)
    }

    /// A new, empty directory for a snapshot, and what it is called in requests.
    fn directory(&self, name: &str) -> io::Result<(PathBuf, String)> {
        let path = self.path(name);
        let _ = fs::remove_dir_all(&path);
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        let url = format!("file://{}", path.display());
        Ok((path, url))
    }

    fn machine(&self, parts: &Parts<'_>, how: &Begin<'_>) -> Value {
        let (processors, size) = (parts.machine.processors(), parts.machine.memory());
        let memory = match how {
            Begin::Template(_) => {
                json!({"size": 0, "zones": [{"id": ZONE, "size": size, "file": self.path(ZONE), "shared": true}]})
            }
            _ => json!({"size": size}),
        };
        let disk = |id: &str, path: String, readonly: bool| json!({"id": id, "path": path, "readonly": readonly, "image_type": "Raw", "num_queues": 1});
        json!({
            "cpus": {"boot_vcpus": processors, "max_vcpus": processors, "nested": false},
            "memory": memory,
            "payload": {
                "kernel": self.place.part(KERNEL),
                "initramfs": self.place.part(INITRD),
                "cmdline": told(&parts.machine, "reboot=k"),
            },
            "disks": [
                disk("image", format!("/proc/self/fd/{IMAGE}"), true),
                disk("disk", parts.disk.display().to_string(), false),
            ],
            "rng": {"src": "/dev/urandom"},
            "serial": {"mode": "Off"},
            "console": {"mode": "Off"},
            "vsock": {"cid": 3, "socket": self.path("port")},
        })
    }

    /// Stops a machine and has it written to a new directory.
    fn write(&self, running: &mut Running) -> io::Result<PathBuf> {
        let (directory, url) = self.directory("snapshot")?;
        let api = api_of(running)?;
        api.ask("PUT", &call("vm.pause"), None, self.place.patience.answer)?;
        api.ask("PUT", &call("vm.snapshot"), Some(&json!({"destination_url": url})), self.place.patience.writing)?;
        Ok(directory)
    }

    /// Has it read again.
    fn restore(&self, api: &Api, url: &str) -> io::Result<()> {
        api.ask(
            "PUT",
            &call("vm.restore"),
            Some(&json!({"source_url": url, "prefault": false})),
            self.place.patience.writing,
        )
        .map(drop)
    }

    fn resume(&self, api: &Api) -> io::Result<()> {
        api.ask("PUT", &call("vm.resume"), None, self.place.patience.answer).map(drop)
    }
}

/// A small file of a snapshot.
fn read(directory: &Path, name: &str) -> io::Result<Vec<u8>> {
    let about = |error: io::Error| io::Error::new(error.kind(), format!("its snapshot's {name}: {error}"));
    let file = File::open(directory.join(name)).map_err(about)?;
    if file.metadata().map_err(about)?.len() > template::MAX_STATE as u64 {
        return Err(about(io::Error::other("it is too long")));
    }
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, template::MAX_STATE as u64), &mut bytes).map_err(about)?;
    Ok(bytes)
}

/// Says in a snapshot's configuration where the memory is: in this file, privately, or in none.
fn with_memory(config: &[u8], file: Option<&str>) -> io::Result<Vec<u8>> {
    let is_none = |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("its snapshot's {CONFIG}: {why}"));
    let mut config: Value = serde_json::from_slice(config).map_err(|error| is_none(&error.to_string()))?;
    let memory = config.get_mut("memory").ok_or_else(|| is_none("it has no memory"))?;
    let zones = memory.get_mut("zones").and_then(Value::as_array_mut);
    match (zones.map(Vec::as_mut_slice), file) {
        (Some([Value::Object(zone)]), _) => {
            zone.insert("file".to_owned(), file.map_or(Value::Null, Value::from));
            zone.insert("shared".to_owned(), Value::Bool(false));
        }
        (None, None) => {}
        _ => return Err(is_none("its memory is not what it was made of")),
    }
    Ok(config.to_string().into_bytes())
}

/// Two small files as one, which begins with the first one's length, and the reverse.
fn join(config: &[u8], state: &[u8]) -> Vec<u8> {
    [&(config.len() as u64).to_le_bytes(), config, state].concat()
}

fn split(both: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = both.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)
}

impl Vmm for CloudHypervisor {
    fn begin(&self, parts: &Parts<'_>, how: &Begin<'_>) -> io::Result<Running> {
        let memory = parts.machine.memory();
        let is_none = || io::Error::new(io::ErrorKind::InvalidData, "this is no template of such a machine");
        self.place.prepare()?;
        let mut pass = vec![(parts.image.try_clone()?, IMAGE)];
        // What it is to be made of, in files.
        let snapshot = match how {
            Begin::Boot => None,
            Begin::Template(_) => {
                File::create_new(self.path(ZONE))?.set_len(memory)?;
                None
            }
            Begin::Restore(file) => {
                let both = template::read_state(Kind::CloudHypervisor, file, memory)?;
                let (config, state) = split(&both).ok_or_else(is_none)?;
                let (directory, url) = self.directory("template")?;
                fs::write(directory.join(CONFIG), with_memory(config, Some(&format!("/proc/self/fd/{MEMORY}")))?)?;
                fs::write(directory.join(STATE), state)?;
                pass.push((file.try_clone()?, MEMORY));
                Some((directory, url))
            }
            Begin::Wake(from) => {
                let (directory, url) = self.directory("saved")?;
                let ranges = OwnedFd::from(
                    File::options().read(true).write(true).create_new(true).open(directory.join(RANGES))?,
                );
                let (files, _) = saved::read(from, 2, &ranges, memory)?;
                for (name, bytes) in [CONFIG, STATE].into_iter().zip(&files) {
                    let bytes = if name == CONFIG { &with_memory(bytes, None)? } else { bytes };
                    fs::write(directory.join(name), bytes)?;
                }
                Some((directory, url))
            }
        };
        let socket = self.path("api");
        let arguments = ["--api-socket", &format!("path={}", socket.display()), "--seccomp", "true"];
        let (pid, words) = self.place.spawn(arguments.map(str::to_owned).to_vec(), pass)?;
        let mut api = Api::wait(socket, pid, self.place.patience.start)?;
        match &snapshot {
            None => {
                api.ask("PUT", &call("vm.create"), Some(&self.machine(parts, how)), self.place.patience.answer)?;
                api.ask("PUT", &call("vm.boot"), None, self.place.patience.answer)?;
            }
            Some((directory, url)) => {
                self.restore(&api, url)?;
                // Read, it is not needed any more, and it is in memory.
                fs::remove_dir_all(directory)?;
                if matches!(how, Begin::Restore(_)) {
                    self.resume(&api)?;
                }
            }
        }
        // One that stands still takes no connection.
        api.has_no_port = matches!(how, Begin::Wake(_));
        let port =
            if api.has_no_port { super::no_port()? } else { api.port(&self.path("port"), self.place.patience.port)? };
        Ok(Running { pid, port, words, orders: Orders::Api(api, None) })
    }

    fn snapshot(&self, parts: &Parts<'_>, running: &mut Running, file: &OwnedFd) -> io::Result<()> {
        let memory = parts.machine.memory();
        let directory = self.write(running)?;
        if directory.join(RANGES).exists() {
            return Err(io::Error::other("it wrote the memory apart, so that nobody could share it"));
        }
        let both = join(&read(&directory, CONFIG)?, &read(&directory, STATE)?);
        fs::remove_dir_all(directory)?;
        template::copy(&File::open(self.path(ZONE))?, memory, file)?;
        fs::remove_file(self.path(ZONE))?;
        template::complete(Kind::CloudHypervisor, file, memory, &both)
    }

    fn save(&self, _: &Parts<'_>, running: &mut Running, to: &OwnedFd) -> io::Result<()> {
        let directory = self.write(running)?;
        let written = (|| {
            let (config, state) = (read(&directory, CONFIG)?, read(&directory, STATE)?);
            let memory = File::open(directory.join(RANGES))?;
            let length = memory.metadata()?.len();
            saved::write(to, &[&config, &state], &memory, length)
        })();
        // Whatever came of it, its memory is needed.
        fs::remove_dir_all(directory)?;
        written
    }

    fn go_on(&self, _: &Parts<'_>, running: &mut Running) -> io::Result<bool> {
        let (socket, patience) = (self.path("port"), self.place.patience.port);
        let api = api_of(running)?;
        self.resume(api)?;
        if !std::mem::take(&mut api.has_no_port) {
            return Ok(false);
        }
        let port = api.port(&socket, patience)?;
        running.port = port;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_where_it_is_said_to_be() {
        let zone = |more: Value| {
            let mut zone = json!({"id": ZONE, "size": 1});
            zone.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({"cpus": 1, "memory": {"size": 0, "zones": [zone]}})
        };
        let config = zone(json!({"file": "/a", "shared": true})).to_string();
        let parsed = |bytes: Vec<u8>| serde_json::from_slice::<Value>(&bytes).unwrap();
        let private = with_memory(config.as_bytes(), Some("/b")).unwrap();
        assert_eq!(parsed(private), zone(json!({"file": "/b", "shared": false})));
        let anonymous = with_memory(config.as_bytes(), None).unwrap();
        assert_eq!(parsed(anonymous), zone(json!({"file": null, "shared": false})));
        // A machine that booted has no zone, and no template.
        let booted = json!({"memory": {"size": 1}}).to_string();
        assert_eq!(with_memory(booted.as_bytes(), None).unwrap(), booted.as_bytes());
        for wrong in [booted.as_str(), "{}", "", r#"{"memory": {"zones": []}}"#, r#"{"memory": {"zones": [1]}}"#] {
            let _ = with_memory(wrong.as_bytes(), Some("/b")).map(|_| panic!("{wrong} has such memory"));
        }
    }

    #[test]
    fn two_files_are_one_and_two_again() {
        assert_eq!(split(&join(b"one", b"two")), Some((b"one".as_slice(), b"two".as_slice())));
        assert_eq!(split(b"short"), None);
        assert_eq!(split(&[0xff; 20]), None);
    }
}
