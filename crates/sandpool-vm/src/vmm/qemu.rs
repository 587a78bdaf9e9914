//! QEMU's machine type `microvm`: a processor, memory, and devices over virtio-mmio.
//!
//! A template is made as VM templating does it: the memory is a shared file, so that migration (`x-ignore-shared`) writes the
//! devices' state alone. Restored machines map the same file, each privately. What is saved of a machine is its migration, memory
//! and all.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use serde_json::{Value, json};

use super::template::{self, MAX_STATE};
use super::{Begin, INITRD, KERNEL, Kind, Parts, Place, Platform, Running, Vmm, told};

/// The longest wait for an answer to an order.
const ORDER: Duration = Duration::from_secs(60);

/// The longest wait for a machine to be written, which whoever takes it may slow down.
const SAVING: Duration = Duration::from_secs(600);

/// The longest of its answers, in bytes.
const LONGEST_ANSWER: u64 = 1 << 20;

/// Bytes in a second: as fast as it goes.
const BANDWIDTH: u64 = 1 << 40;

/// The numbers that QEMU's descriptors get.
const PORT: i32 = 3;
const IMAGE: i32 = 4;
const MEMORY: i32 = 5;
const ORDERS: i32 = 6;
const STATE: i32 = 7;

/// QEMU.
#[derive(Clone, Debug)]
pub(super) struct Qemu {
    /// What its machines have in common.
    pub(super) platform: Platform,
    /// Where it is.
    pub(super) place: Place,
}

/// Its arguments. All of them are made of numbers and of names that are written here.
fn arguments(platform: &Platform, place: &Place, parts: &Parts<'_>, how: &Begin<'_>) -> Vec<String> {
    let memory = parts.machine.memory();
    let disk = parts.disk.display();
    let backend = match how {
        Begin::Boot | Begin::Wake(_) => format!("memory-backend-ram,id=memory,size={memory}"),
        Begin::Template(_) => {
            format!("memory-backend-file,id=memory,size={memory},mem-path=/proc/self/fd/{MEMORY},share=on")
        }
        Begin::Restore(_) => {
            format!("memory-backend-file,id=memory,size={memory},mem-path=/proc/self/fd/{MEMORY},share=off")
        }
    };
    let (accelerator, processor) =
        if platform.is_emulated { ("tcg,thread=multi,tb-size=64", "max") } else { ("kvm", "host") };
    // An emulated processor counts the host's ticks and does not know how fast they come. By the timer of old a kernel finds out on
    // a quiet host alone: elsewhere it stops there.
    let (timer, ticks) = if platform.is_emulated {
        ("on", format!("tsc_early_khz={} tsc=reliable ", platform.tsc_khz))
    } else {
        ("off", String::new())
    };
    // It takes a processor that stumbles thrice for the end.
    let told = told(&parts.machine, &format!("{ticks}reboot=t"));
    let mut arguments: Vec<String> = [
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-machine",
    ]
    .map(str::to_owned)
    .to_vec();
    arguments.push(format!(
        "microvm,acpi=on,pcie=off,usb=off,rtc=on,pit={timer},pic={timer},isa-serial=off,auto-kernel-cmdline=off,\
         graphics=off,dump-guest-core=off,memory-backend=memory"
    ));
    let mut pair = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
    pair("-accel", accelerator.to_owned());
    pair("-cpu", processor.to_owned());
    pair("-smp", parts.machine.processors().to_string());
    pair("-m", format!("{}M", memory >> 20));
    pair("-object", backend);
    pair("-kernel", place.part(KERNEL).display().to_string());
    pair("-initrd", place.part(INITRD).display().to_string());
    pair("-append", told);
    pair("-add-fd", format!("fd={IMAGE},set=1"));
    let image = "driver=file,filename=/dev/fdset/1,read-only=on,locking=off,node-name=image,cache.no-flush=on";
    pair("-blockdev", image.to_owned());
    pair("-device", "virtio-blk-device,drive=image,serial=image".to_owned());
    pair(
        "-blockdev",
        format!("driver=file,filename={disk},node-name=disk,locking=off,cache.no-flush=on,discard=unmap"),
    );
    pair("-device", "virtio-blk-device,drive=disk,serial=disk".to_owned());
    pair("-device", "virtio-serial-device,max_ports=2".to_owned());
    pair("-chardev", format!("socket,id=port,fd={PORT}"));
    pair("-device", "virtserialport,chardev=port,name=sandpool,nr=1".to_owned());
    pair("-chardev", format!("socket,id=orders,fd={ORDERS}"));
    pair("-mon", "chardev=orders,mode=control".to_owned());
    if matches!(how, Begin::Restore(_) | Begin::Wake(_)) {
        pair("-incoming", "defer".to_owned());
    }
    if matches!(how, Begin::Wake(_)) {
        arguments.push("-S".to_owned());
    }
    arguments
}

impl Vmm for Qemu {
    fn begin(&self, parts: &Parts<'_>, how: &Begin<'_>) -> io::Result<Running> {
        let (port, machines_port) = pair()?;
        let (orders, its_orders) = pair()?;
        rustix::io::ioctl_fionbio(&orders, false)?;
        let mut pass = vec![(machines_port, PORT), (parts.image.try_clone()?, IMAGE), (its_orders, ORDERS)];
        if let Begin::Template(file) | Begin::Restore(file) = how {
            pass.push((file.try_clone()?, MEMORY));
        }
        match how {
            Begin::Restore(file) => {
                let (state, _) = template::state_of(Kind::Qemu, file, parts.machine.memory())?;
                pass.push((state.into(), STATE));
            }
            Begin::Wake(from) => pass.push((from.try_clone()?, STATE)),
            Begin::Boot | Begin::Template(_) => {}
        }
        let (pid, words) = self.place.spawn(arguments(&self.platform, &self.place, parts, how), pass)?;
        let mut orders = Orders::greet(UnixStream::from(orders))?;
        match how {
            Begin::Boot => {}
            // Memory that is in a file is not written to the state of the devices, nor looked for there.
            Begin::Template(_) => orders.allow("x-ignore-shared", true)?,
            Begin::Restore(_) | Begin::Wake(_) => {
                orders.allow("x-ignore-shared", matches!(how, Begin::Restore(_)))?;
                // What was frozen goes on by itself once it is whole, and ends where it cannot be.
                orders.is_waking = matches!(how, Begin::Wake(_));
                let from = json!({"uri": format!("fd:{STATE}")});
                orders.give(&json!({"execute": "migrate-incoming", "arguments": from}), None)?;
            }
        }
        Ok(Running { pid, port, words, orders: super::Orders::Qemu(orders) })
    }

    fn snapshot(&self, parts: &Parts<'_>, running: &mut Running, file: &OwnedFd) -> io::Result<()> {
        // It is stopped when it has been written, and not before: what was stopped does not go on by itself.
        let (state, its) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let orders = orders_of(running)?;
        orders.begin_migration(its.as_fd())?;
        drop(its);
        let mut bytes = Vec::new();
        // To its end: QEMU closes its own when it is done, whatever came of it.
        File::from(state).take(MAX_STATE as u64 + 1).read_to_end(&mut bytes)?;
        orders.end_migration()?;
        template::complete(Kind::Qemu, file, parts.machine.memory(), &bytes)
    }

    fn save(&self, _: &Parts<'_>, running: &mut Running, to: &OwnedFd) -> io::Result<()> {
        let orders = orders_of(running)?;
        orders.give(&json!({"execute": "stop"}), None)?;
        orders.allow("x-ignore-shared", false)?;
        let fast = json!({"max-bandwidth": BANDWIDTH});
        orders.give(&json!({"execute": "migrate-set-parameters", "arguments": fast}), None)?;
        orders.begin_migration(to.as_fd())?;
        orders.end_migration()
    }

    fn go_on(&self, _: &Parts<'_>, running: &mut Running) -> io::Result<bool> {
        let orders = orders_of(running)?;
        // What was stopped when it was written is stopped again once it is whole, whatever was ordered before.
        if orders.is_waking {
            orders.end_migration()?;
        }
        orders.is_waking = false;
        orders.give(&json!({"execute": "cont"}), None)?;
        Ok(false)
    }
}

fn orders_of(running: &mut Running) -> io::Result<&mut Orders> {
    match &mut running.orders {
        super::Orders::Qemu(orders) => Ok(orders),
        super::Orders::Api(..) => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// A connected pair; the first does not block.
fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, its) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, its))
}

/// QEMU's machine protocol: JSON objects, one a line. What they order is code of the VMM's user, so nobody else ever has it.
#[derive(Debug)]
pub(super) struct Orders {
    to: UnixStream,
    from: BufReader<UnixStream>,
    /// What came of the last migration, once something did.
    migrated: Option<String>,
    /// It is not known yet to be whole.
    is_waking: bool,
}

impl Orders {
    fn greet(to: UnixStream) -> io::Result<Self> {
        to.set_read_timeout(Some(ORDER))?;
        let mut orders = Self { from: BufReader::new(to.try_clone()?), to, migrated: None, is_waking: false };
        let greeting = orders.next()?;
        if greeting.get("QMP").is_none() {
            return Err(io::Error::other(format!("it is no QEMU: {greeting}")));
        }
        orders.give(&json!({"execute": "qmp_capabilities"}), None)?;
        orders.allow("events", true)?;
        Ok(orders)
    }

    /// Turns one of migration's ways on or off.
    fn allow(&mut self, capability: &str, state: bool) -> io::Result<()> {
        let one = json!({"capabilities": [{"capability": capability, "state": state}]});
        self.give(&json!({"execute": "migrate-set-capabilities", "arguments": one}), None).map(drop)
    }

    /// Has the machine written there.
    fn begin_migration(&mut self, to: BorrowedFd<'_>) -> io::Result<()> {
        self.migrated = None;
        self.give(&json!({"execute": "getfd", "arguments": {"fdname": "state"}}), Some(to))?;
        self.give(&json!({"execute": "migrate", "arguments": {"uri": "fd:state"}}), None).map(drop)
    }

    /// Waits until it is written.
    fn end_migration(&mut self) -> io::Result<()> {
        self.to.set_read_timeout(Some(SAVING))?;
        while self.migrated.is_none() {
            self.next()?;
        }
        self.to.set_read_timeout(Some(ORDER))?;
        match self.migrated.as_deref() {
            Some("completed") => Ok(()),
            how => Err(io::Error::other(format!("the machine could not be written: {}", how.unwrap_or_default()))),
        }
    }

    /// Gives an order, and answers what came of it.
    fn give(&mut self, order: &Value, fd: Option<BorrowedFd<'_>>) -> io::Result<Value> {
        let text = format!("{order}\n");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if let Some(fd) = fd.as_ref() {
            ancillary.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(fd)));
        }
        let sent =
            rustix::net::sendmsg(&self.to, &[IoSlice::new(text.as_bytes())], &mut ancillary, SendFlags::NOSIGNAL)?;
        if sent != text.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        loop {
            let mut answer = self.next()?;
            if let Some(done) = answer.get_mut("return") {
                return Ok(done.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(io::Error::other(format!("{order}: {error}")));
            }
            // An event.
        }
    }

    fn next(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        if (&mut self.from).take(LONGEST_ANSWER).read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let said: Value = serde_json::from_str(&line).map_err(io::Error::other)?;
        if said["event"] == "MIGRATION"
            && let Some(status @ ("completed" | "failed" | "cancelled")) = said["data"]["status"].as_str()
        {
            self.migrated = Some(status.to_owned());
        }
        Ok(said)
    }
}
