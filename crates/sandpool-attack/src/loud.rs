//! Attackers that do harm: to themselves, and to nobody else. After each, the neighbour must answer, and the attacker's
//! own session must give a clear answer.

/// One attacker, with the code of a session that may die of it.
#[derive(Clone, Copy, Debug)]
pub struct Loud {
    /// Its line of the specification, and what it tries.
    pub id: &'static str,
    /// What it runs.
    pub code: &'static str,
    /// Its time-out.
    pub seconds: u64,
    /// The execution's end: words of its state, any of which will do.
    pub ends: &'static [&'static str],
    /// A part of its output, when its end is its own.
    pub says: &'static str,
    /// What the same session answers afterwards to `print(kept)`, after `kept = 7` before: or that it is lost.
    pub keeps: Keeps,
}

/// What is left of the attacker's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// Its variables are there.
    State,
    /// The interpreter was replaced, or the session says that it was lost.
    Nothing,
    /// Either: what the kernel ends first is its own choice.
    Either,
}

/// Each in a session of its own.
pub const LOUD: &[Loud] = &[
    Loud {
        id: "RS2-fork-bomb",
        code: "failed = None\nchildren = []\n\
               for n in range(1000):\n\
               \x20   try: pid = os.fork()\n\
               \x20   except OSError as error: failed = word(error.errno); break\n\
               \x20   if pid == 0:\n\
               \x20       time.sleep(60); os._exit(0)\n\
               \x20   children.append(pid)\n\
               tell(failed, len(children) < 96)\n\
               for pid in children: os.kill(pid, 9); os.waitpid(pid, 0)",
        seconds: 30,
        ends: &["Succeeded"],
        says: "EAGAIN\nTrue\n",
        keeps: Keeps::State,
    },
    Loud {
        id: "RS2-fork-bomb-that-never-stops",
        code: "subprocess.run(['bash', '-c', 'b() { b | b & }; b; sleep 600'])",
        seconds: 3,
        ends: &["TimedOut", "Succeeded", "Raised", "Died"],
        says: "",
        keeps: Keeps::Either,
    },
    Loud {
        id: "RS2-thread-bomb",
        code: "threads, stop = [], threading.Event()\n\
               try:\n\
               \x20   while len(threads) < 2000:\n\
               \x20       thread = threading.Thread(target=stop.wait, daemon=True); thread.start(); threads.append(thread)\n\
               except RuntimeError: pass\n\
               tell(len(threads) < 96)\n\
               stop.set()\n\
               for thread in threads: thread.join()",
        seconds: 30,
        ends: &["Succeeded"],
        says: "True\n",
        keeps: Keeps::State,
    },
    Loud {
        id: "RS2-zombies",
        code: "subprocess.run(['bash', '-c', 'for i in $(seq 400); do (true & true & exec true) & done; wait'])\n\
               time.sleep(0.3)\n\
               zombies = [p for p in os.listdir('/proc') if p.isdigit() and p != '1' and os.path.exists(f'/proc/{p}/stat') and ') Z ' in text(f'/proc/{p}/stat')]\n\
               tell(zombies)",
        seconds: 30,
        ends: &["Succeeded"],
        says: "[]\n",
        keeps: Keeps::State,
    },
    Loud {
        id: "RS1-memory-by-objects",
        code: "hoard = []\nwhile True: hoard.append(bytearray(8 << 20))",
        seconds: 30,
        ends: &["Died", "Raised"],
        says: "",
        keeps: Keeps::Nothing,
    },
    Loud {
        id: "RS1-memory-by-a-program",
        code: "tell(subprocess.run(['perl', '-e', '$x = q(x) x 900_000_000; print length $x'], capture_output=True).returncode)",
        seconds: 30,
        ends: &["Succeeded"],
        says: "-9\n",
        keeps: Keeps::State,
    },
    Loud {
        id: "RS1-memory-by-files",
        code: "def fill(path):\n\
               \x20   with open(path, 'wb') as file:\n\
               \x20       while True: file.write(b'x' * (1 << 20))\n\
               tell(attempt(fill, '/dev/shm/fill') in ('ENOSPC', 'EFBIG'))\n\
               os.unlink('/dev/shm/fill')",
        seconds: 30,
        ends: &["Succeeded", "Died"],
        says: "",
        keeps: Keeps::Either,
    },
    Loud {
        id: "RS9-memory-in-the-kernel",
        code: "held = []\n\
               try:\n\
               \x20   while len(held) < 4000:\n\
               \x20       read, write = os.pipe(); held.append((read, write))\n\
               \x20       attempt(fcntl.fcntl, write, 1031, 1 << 20); os.set_blocking(write, False)\n\
               \x20       attempt(os.write, write, b'x' * (1 << 20))\n\
               except OSError as error: tell(word(error.errno))",
        seconds: 30,
        ends: &["Succeeded", "Died", "Raised"],
        says: "",
        keeps: Keeps::Either,
    },
    Loud {
        id: "RS5-descriptors",
        code: "held = []\n\
               try:\n\
               \x20   while True: held.append(os.open('/dev/null', 0))\n\
               except OSError as error: failed = word(error.errno)\n\
               for fd in held: os.close(fd)\n\
               tell(failed, len(held) <= 4096)",
        seconds: 30,
        ends: &["Succeeded"],
        says: "EMFILE\nTrue\n",
        keeps: Keeps::State,
    },
    Loud {
        id: "FS4-a-full-disk",
        code: "def fill(path):\n\
               \x20   with open(path, 'wb', 0) as file:\n\
               \x20       for _ in range(4096): file.write(b'x' * (1 << 20))\n\
               signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n\
               for place in ('/mnt/data/f', '/tmp/f', '/home/sandbox/f'):\n\
               \x20   tell(attempt(fill, place)); os.unlink(place)\n\
               tell(attempt(os.truncate, '/usr/bin/env', 0))",
        seconds: 30,
        ends: &["Succeeded"],
        says: "ENOSPC\nENOSPC\nENOSPC\nEROFS\n",
        keeps: Keeps::State,
    },
    Loud {
        id: "FS4-no-inodes-left",
        code: "made = 0\n\
               try:\n\
               \x20   while made < 1_000_000: os.close(os.open(f'/tmp/i{made}', os.O_CREAT)); made += 1\n\
               except OSError as error: tell(word(error.errno), made <= 16384)\n\
               subprocess.run('rm -f /tmp/i*', shell=True)\n\
               subprocess.run(['find', '/tmp', '-name', 'i[0-9]*', '-delete'])",
        seconds: 30,
        ends: &["Succeeded"],
        says: "ENOSPC\nTrue\n",
        keeps: Keeps::State,
    },
    Loud {
        id: "RS10-a-deep-tree",
        code: "os.chdir('/tmp')\n\
               for n in range(5000):\n\
               \x20   os.mkdir('d' * 200); os.chdir('d' * 200)\n\
               os.chdir('/mnt/data'); tell('deep')",
        seconds: 30,
        ends: &["Succeeded"],
        says: "deep\n",
        keeps: Keeps::State,
    },
    Loud {
        id: "RS7-output-without-end",
        code: "for n in range(200): os.write(1, b'x' * (1 << 20))\nsys.stderr.write('after')",
        seconds: 30,
        ends: &["Succeeded"],
        says: "xxxx",
        keeps: Keeps::State,
    },
    Loud {
        id: "RS6-time-is-up",
        code: "signal.signal(signal.SIGINT, signal.SIG_IGN)\nsubprocess.Popen(['sleep', '600'])\nwhile True: pass",
        seconds: 2,
        ends: &["TimedOut"],
        says: "",
        keeps: Keeps::Either,
    },
    Loud {
        id: "ZG4-forged-frames",
        code: "os.write(5, struct.pack('<II', 22, 0) + b'{\"t\":\"end\",\"n\":\"1-1\",\"ok\":true}'[:22]); time.sleep(5)",
        seconds: 20,
        ends: &["Died"],
        says: "",
        keeps: Keeps::Nothing,
    },
    Loud {
        id: "ZG4-a-frame-of-four-gigabytes",
        code: "os.write(5, b'\\xff' * 4096); time.sleep(5)",
        seconds: 20,
        ends: &["Died"],
        says: "",
        keeps: Keeps::Nothing,
    },
    Loud {
        id: "ZG4-closed-channel",
        code: "os.closerange(3, 100); print('still here')",
        seconds: 20,
        ends: &["Died"],
        says: "still here",
        keeps: Keeps::Nothing,
    },
    Loud {
        id: "ZG4-all-descriptors-closed",
        code: "os.closerange(0, 100); time.sleep(5)",
        seconds: 20,
        ends: &["Died"],
        says: "",
        keeps: Keeps::Nothing,
    },
    Loud {
        id: "ZG4-the-interpreter-ends-itself",
        code: "os._exit(3)",
        seconds: 20,
        ends: &["Died"],
        says: "",
        keeps: Keeps::Nothing,
    },
    Loud {
        id: "ZG4-a-child-that-goes-on",
        code: "pid = os.fork()\nif pid == 0:\n    raise SystemExit(0)\nos.waitpid(pid, 0)\ntell('once')",
        seconds: 20,
        ends: &["Succeeded"],
        says: "once\n",
        keeps: Keeps::State,
    },
    Loud {
        id: "NS2-everybody-killed",
        code: "os.kill(-1, 9); time.sleep(5)",
        seconds: 20,
        ends: &["Died", "Succeeded", "Raised"],
        says: "",
        keeps: Keeps::Either,
    },
];
