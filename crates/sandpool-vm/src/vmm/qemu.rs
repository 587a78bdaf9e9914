//! QEMU's machine type `microvm`: a processor, memory, and devices over virtio-mmio.
//!
//! ```text
//! template file:  memory of the machine | state of its devices | length of that, MAGIC     (u64 each, little endian)
//! ```
//!
//! A template is made as VM templating does it: the memory is a shared file, so that migration (`x-ignore-shared`) writes the
//! devices' state alone. Restored machines map the same file, each privately.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use sandpool_sys::workload::{self, Identity, Workload};
use sandpool_walls::setup::WORKLOAD;
use serde_json::{Value, json};

use super::{Begin, INITRD, KERNEL, Parts, Platform, Running, Vmm};

/// At the end of a template's file.
const MAGIC: u64 = u64::from_le_bytes(*b"sandpvm1");

/// The longest state of devices, in bytes. It has been 60 KiB.
const MAX_STATE: usize = 32 << 20;

/// The longest wait for an answer to an order.
const ORDER: Duration = Duration::from_secs(60);

/// The numbers that QEMU's descriptors get.
const PORT: i32 = 3;
const IMAGE: i32 = 4;
const MEMORY: i32 = 5;
const ORDERS: i32 = 6;
const STATE: i32 = 7;

/// Where the distribution puts it.
pub const PROGRAM: &str = "/usr/bin/qemu-system-x86_64";

/// QEMU, as it is found below the root.
#[derive(Clone, Debug)]
pub struct Qemu {
    /// What its machines have in common.
    pub platform: Platform,
}

/// Its arguments. All of them are made of numbers and of names that are written here.
fn arguments(platform: &Platform, parts: &Parts<'_>, how: &Begin<'_>) -> Vec<String> {
    let memory = parts.machine.memory();
    let disk = parts.disk.display();
    let backend = match how {
        Begin::Boot => format!("memory-backend-ram,id=memory,size={memory}"),
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
    let told = format!(
        "{ticks}quiet panic=-1 reboot=t apparmor=0 audit=0 cryptomgr.notests random.trust_cpu=on sandpool={}",
        parts.machine.words().join(",")
    );
    let mut arguments: Vec<String> = [
        PROGRAM,
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
    pair("-kernel", KERNEL.to_owned());
    pair("-initrd", INITRD.to_owned());
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
    if !matches!(how, Begin::Boot) {
        pair("-chardev", format!("socket,id=orders,fd={ORDERS}"));
        pair("-mon", "chardev=orders,mode=control".to_owned());
    }
    if matches!(how, Begin::Restore(_)) {
        pair("-incoming", "defer".to_owned());
    }
    arguments
}

impl Vmm for Qemu {
    fn begin(&self, parts: &Parts<'_>, how: &Begin<'_>) -> io::Result<Running> {
        let (port, machines_port) = pair()?;
        let (words, said) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // What it writes it waits for.
        rustix::io::ioctl_fionbio(&said, false)?;
        let mut pass = vec![(machines_port, PORT), (parts.image.try_clone()?, IMAGE)];
        let mut orders = None;
        if let Begin::Template(file) | Begin::Restore(file) = how {
            let (ours, its) = pair()?;
            rustix::io::ioctl_fionbio(&ours, false)?;
            pass.extend([(file.try_clone()?, MEMORY), (its, ORDERS)]);
            orders = Some(UnixStream::from(ours));
        }
        if let Begin::Restore(file) = how {
            pass.push((state_of(file, parts.machine.memory())?, STATE));
        }
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let pid = workload::spawn(Workload {
            argv: arguments(&self.platform, parts, how).into_iter().map(Into::into).collect(),
            file: None,
            env: vec![("PATH".into(), "/usr/bin".into()), ("TMPDIR".into(), "/tmp".into())],
            directory: "/".into(),
            identity: Some(Identity { uid: WORKLOAD, gid: WORKLOAD }),
            stdio: [null.try_clone()?, said.try_clone()?, said],
            pass,
            terminal: false,
        })?;
        let orders = orders.map(Orders::greet).transpose()?;
        let mut running = Running { pid, port, words, orders };
        if let (Begin::Restore(_), Some(orders)) = (how, &mut running.orders) {
            // It goes on by itself once it is whole, and ends where it cannot be.
            orders.give(&json!({"execute": "migrate-incoming", "arguments": {"uri": format!("fd:{STATE}")}}), None)?;
        }
        Ok(running)
    }

    fn snapshot(&self, parts: &Parts<'_>, running: &mut Running, file: &OwnedFd) -> io::Result<()> {
        let orders = running.orders.as_mut().ok_or(io::ErrorKind::InvalidInput)?;
        // It is stopped when it has been written, and not before: what was stopped does not go on by itself.
        let (state, its) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        orders.give(&json!({"execute": "getfd", "arguments": {"fdname": "state"}}), Some(its.as_fd()))?;
        drop(its);
        orders.give(&json!({"execute": "migrate", "arguments": {"uri": "fd:state"}}), None)?;
        let mut bytes = Vec::new();
        // To its end: QEMU closes its own when it is done, whatever came of it.
        File::from(state).take(MAX_STATE as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > MAX_STATE {
            return Err(io::Error::other("the state of the devices is too long"));
        }
        let outcome = orders.give(&json!({"execute": "query-migrate"}), None)?;
        if !matches!(outcome["status"].as_str(), Some("completed")) {
            return Err(io::Error::other(format!("the machine could not be written: {outcome}")));
        }
        let length = bytes.len() as u64;
        bytes.extend(length.to_le_bytes());
        bytes.extend(MAGIC.to_le_bytes());
        File::from(file.try_clone()?).write_all_at(&bytes, parts.machine.memory())
    }
}

/// A template's state of devices: the file, open anew where that begins.
fn state_of(file: &OwnedFd, memory: u64) -> io::Result<OwnedFd> {
    let file = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let length = file.metadata()?.len();
    let mut end = [0; 16];
    let is_none = || io::Error::new(io::ErrorKind::InvalidData, "this is no template of such a machine");
    file.read_exact_at(&mut end, length.checked_sub(16).ok_or_else(is_none)?)?;
    let (state, magic) = end.split_at(8);
    let number = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).unwrap_or_default();
    if number(magic) != MAGIC || memory.checked_add(number(state)).and_then(|sum| sum.checked_add(16)) != Some(length) {
        return Err(is_none());
    }
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(memory))?;
    Ok(file.into())
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
    from: BufReader<io::Take<UnixStream>>,
}

impl Orders {
    fn greet(to: UnixStream) -> io::Result<Self> {
        to.set_read_timeout(Some(ORDER))?;
        let mut orders = Self { from: BufReader::new(to.try_clone()?.take(1 << 20)), to };
        let greeting = orders.next()?;
        if greeting.get("QMP").is_none() {
            return Err(io::Error::other(format!("it is no QEMU: {greeting}")));
        }
        orders.give(&json!({"execute": "qmp_capabilities"}), None)?;
        // Memory that is in a file is not written to the state of the devices, nor looked for there.
        let apart = json!({"capabilities": [{"capability": "x-ignore-shared", "state": true}]});
        orders.give(&json!({"execute": "migrate-set-capabilities", "arguments": apart}), None)?;
        Ok(orders)
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
        if self.from.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_str(&line).map_err(io::Error::other)
    }
}
