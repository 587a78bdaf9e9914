//! Firecracker, over its API socket.
//!
//! Paths, fields and states are those of its `src/firecracker/swagger/firecracker.yaml` (version 1.16.1); what a request does to a machine
//! is said in its `docs/snapshotting/snapshot-support.md` and `docs/vsock.md`. Its devices are on virtio-mmio, told of by ACPI; its own
//! filter of system calls is on, as it is where nobody says otherwise.
//!
//! It writes memory and state to files, by their paths: here those of descriptors that it was started with. Each time it has been written
//! the guest's vsock is reset, so that its port has to be opened anew.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::api::Api;
use super::{Begin, INITRD, Kind, Orders, PLAIN_KERNEL, Parts, Place, Running, Vmm, saved, template, told};

/// Virtual processors that it has at most.
const MOST_PROCESSORS: u32 = 32;

/// The numbers that its descriptors get.
const IMAGE: i32 = 3;
/// The template's file, or the memory of one that was saved.
const MEMORY: i32 = 4;
/// The state of devices, on its way out or in.
const STATE: i32 = 5;
/// Memory that is being saved.
const SAVED: i32 = 6;

/// Firecracker.
#[derive(Clone, Debug)]
pub(super) struct Firecracker {
    /// Where it is.
    pub(super) place: Place,
}

fn path(number: i32) -> String {
    format!("/proc/self/fd/{number}")
}

/// Processors as it counts them: one, or an even number.
fn processors(wanted: u32) -> u32 {
    if wanted <= 1 { 1 } else { wanted.next_multiple_of(2).min(MOST_PROCESSORS) }
}

impl Firecracker {
    fn socket(&self, name: &str) -> PathBuf {
        self.place.work.join(name)
    }

    /// What is said before a machine boots.
    fn requests(&self, parts: &Parts<'_>) -> Vec<(&'static str, Value)> {
        let drive = |id: &str, path: String, is_read_only: bool| json!({"drive_id": id, "path_on_host": path, "is_root_device": false, "is_read_only": is_read_only});
        // Of all devices that a PC has it has a keyboard, whose reset is the end.
        let told = told(&parts.machine, "reboot=k pci=off 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd");
        vec![
            (
                "/machine-config",
                json!({
                    "vcpu_count": processors(parts.machine.processors()),
                    "mem_size_mib": parts.machine.memory() >> 20,
                    "smt": false,
                }),
            ),
            (
                "/boot-source",
                json!({
                    "kernel_image_path": self.place.part(PLAIN_KERNEL),
                    "initrd_path": self.place.part(INITRD),
                    "boot_args": told,
                }),
            ),
            ("/drives/image", drive("image", path(IMAGE), true)),
            ("/drives/disk", drive("disk", parts.disk.display().to_string(), false)),
            ("/vsock", json!({"guest_cid": 3, "uds_path": self.socket("port")})),
            ("/actions", json!({"action_type": "InstanceStart"})),
        ]
    }

    /// Stops a machine and has it written to its descriptors.
    fn write(&self, running: &Running, memory: i32) -> io::Result<()> {
        let api = api_of(running)?;
        api.ask("PATCH", "/vm", Some(&json!({"state": "Paused"})), self.place.patience.answer)?;
        let how = json!({"snapshot_type": "Full", "snapshot_path": path(STATE), "mem_file_path": path(memory)});
        api.ask("PUT", "/snapshot/create", Some(&how), self.place.patience.writing).map(drop)
    }
}

fn api_of(running: &Running) -> io::Result<&Api> {
    match &running.orders {
        Orders::Api(api, _) => Ok(api),
        Orders::Qemu(_) => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// What it writes to, and its keeper reads.
#[derive(Debug)]
pub(super) struct Files {
    state: OwnedFd,
    saved: OwnedFd,
}

/// All of a file in memory, which is empty then.
fn take(file: &OwnedFd) -> io::Result<Vec<u8>> {
    let file = File::from(file.try_clone()?);
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    if length > template::MAX_STATE {
        return Err(io::Error::other("the state of the devices is too long"));
    }
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    file.set_len(0)?;
    Ok(bytes)
}

fn files_of(running: &Running) -> io::Result<&Files> {
    match &running.orders {
        Orders::Api(_, Some(files)) => Ok(files),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

impl Vmm for Firecracker {
    fn begin(&self, parts: &Parts<'_>, how: &Begin<'_>) -> io::Result<Running> {
        let memory = parts.machine.memory();
        self.place.prepare()?;
        let files = Files { state: template::memory_file("state", 0)?, saved: template::memory_file("saved", 0)? };
        let mut pass = vec![
            (parts.image.try_clone()?, IMAGE),
            (files.state.try_clone()?, STATE),
            (files.saved.try_clone()?, SAVED),
        ];
        let state = File::from(files.state.try_clone()?);
        match how {
            Begin::Boot => {}
            Begin::Template(file) => pass.push((file.try_clone()?, MEMORY)),
            Begin::Restore(file) => {
                state.write_all_at(&template::read_state(Kind::Firecracker, file, memory)?, 0)?;
                pass.push((file.try_clone()?, MEMORY));
            }
            Begin::Wake(from) => {
                let file = template::memory_file("memory", 0)?;
                let (read, length) = saved::read(from, 1, &file, memory)?;
                if length != memory {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "this is no machine of such a size"));
                }
                state.write_all_at(&read.concat(), 0)?;
                pass.push((file, MEMORY));
            }
        }
        let socket = self.socket("api");
        let arguments = ["--api-sock", &socket.to_string_lossy(), "--id", "sandpool", "--level", "Warning"];
        let (pid, words) = self.place.spawn(arguments.map(str::to_owned).to_vec(), pass)?;
        let mut api = Api::wait(socket, pid, self.place.patience.start)?;
        match how {
            Begin::Boot | Begin::Template(_) => {
                for (path, body) in self.requests(parts) {
                    api.ask("PUT", path, Some(&body), self.place.patience.answer)?;
                }
            }
            Begin::Restore(_) | Begin::Wake(_) => {
                let goes_on = matches!(how, Begin::Restore(_));
                let how = json!({
                    "snapshot_path": path(STATE),
                    "mem_backend": {"backend_type": "File", "backend_path": path(MEMORY)},
                    "resume_vm": goes_on,
                });
                api.ask("PUT", "/snapshot/load", Some(&how), self.place.patience.writing)?;
                // Loaded, it is not needed any more.
                state.set_len(0)?;
            }
        }
        // One that stands still takes no connection.
        api.has_no_port = matches!(how, Begin::Wake(_));
        let port =
            if api.has_no_port { super::no_port()? } else { api.port(&self.socket("port"), self.place.patience.port)? };
        Ok(Running { pid, port, words, orders: Orders::Api(api, Some(files)) })
    }

    fn snapshot(&self, parts: &Parts<'_>, running: &mut Running, file: &OwnedFd) -> io::Result<()> {
        let memory = parts.machine.memory();
        self.write(running, MEMORY)?;
        // It writes all of it, also where nothing is.
        template::make_sparse(file, memory)?;
        template::complete(Kind::Firecracker, file, memory, &take(&files_of(running)?.state)?)
    }

    fn save(&self, parts: &Parts<'_>, running: &mut Running, to: &OwnedFd) -> io::Result<()> {
        self.write(running, SAVED)?;
        let files = files_of(running)?;
        let state = take(&files.state)?;
        let memory = File::from(files.saved.try_clone()?);
        let written = saved::write(to, &[&state], &memory, parts.machine.memory());
        // Whatever came of it, its memory is needed.
        memory.set_len(0)?;
        written
    }

    fn go_on(&self, _: &Parts<'_>, running: &mut Running) -> io::Result<bool> {
        let api = api_of(running)?;
        api.ask("PATCH", "/vm", Some(&json!({"state": "Resumed"})), self.place.patience.answer)?;
        running.port = api.port(&self.socket("port"), self.place.patience.port)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_one_or_an_even_number() {
        let counted = [0, 1, 2, 3, 4, 31, 32, 64].map(processors);
        assert_eq!(counted, [1, 1, 2, 4, 4, 32, 32, 32]);
    }
}
