use sandpool_core::limits::Limits;
use sandpool_wire::agent::{
    Answer, Call, Event, Execute, FromAgent, Outcome, Refusal, Runtime, Stdin, Stop, ToAgent, Work,
};
use sandpool_wire::frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// A sandbox with a session, and one stream to it.
struct Client {
    memory: Memory,
    driver: Arc<MemoryDriver>,
    stream: Stream,
    request: u32,
    events: Vec<(u8, u64, Event)>,
}

const ID: SandboxId = SandboxId([1; 16]);

fn template(runtime: Runtime) -> Template {
    Template {
        pool: PoolName::parse("pool").unwrap(),
        runtime,
        rootfs: "/nowhere".into(),
        limits: Limits { data: 1000, ..Limits::default() },
        boot_limit: Duration::from_secs(20),
        isolation: Isolation::default(),
        local_servers: true,
        main: None,
        start: crate::Start::default(),
        egress: None,
    }
}

async fn ready(driver: &MemoryDriver) {
    while !driver.list().await.unwrap().iter().any(|sandbox| sandbox.id == ID && sandbox.phase == Phase::Ready) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

impl Client {
    async fn new(runtime: Runtime) -> Self {
        let memory = Memory::new(MemoryConfig::default());
        let driver = memory.driver();
        let template = template(runtime);
        driver.ensure_pool(&template).await.unwrap();
        driver.create(ID, &template.pool).await.unwrap();
        ready(&driver).await;
        driver.assign(ID, &Owner { record: b"me".to_vec() }).await.unwrap();
        let env = vec![("SAID".to_owned(), "hello".to_owned())];
        driver.activate(ID, &Activation { env, seed: [0; 32] }).await.unwrap();
        let stream = driver.dial(ID).await.unwrap();
        let mut client = Self { memory, driver, stream, request: 0, events: Vec::new() };
        let FromAgent::Hello { boot_id, .. } = client.hear().await.unwrap() else { panic!("no hello") };
        assert_eq!(client.driver.list().await.unwrap()[0].boot_id, Some(boot_id));
        assert_eq!(client.hear().await, Some(FromAgent::Ready));
        client
    }

    async fn hear(&mut self) -> Option<FromAgent> {
        let mut header = [0; frame::HEADER];
        self.stream.read_exact(&mut header).await.ok()?;
        let mut body = vec![0; frame::body_length(header).unwrap()];
        self.stream.read_exact(&mut body).await.ok()?;
        frame::decode(&body).ok()
    }

    async fn call(&mut self, call: Call) -> Result<Answer, Refusal> {
        self.request += 1;
        let message = ToAgent::Call { request: self.request, call };
        self.stream.write_all(&frame::encode(&message).unwrap()).await.unwrap();
        loop {
            match self.hear().await.expect("the stream ended before the answer") {
                FromAgent::Reply { request, result } if request == self.request => return result,
                FromAgent::Event { exec, seq, event } => self.events.push((exec[0], seq, event)),
                other => panic!("{other:?}"),
            }
        }
    }

    async fn start(&mut self, number: u8, work: Work) -> Result<Answer, Refusal> {
        let execute = Execute { exec: [number; 16], work, timeout_ms: 10_000, output_limit: 100_000 };
        self.call(Call::Execute(execute)).await
    }

    /// The events of an execution, once it has ended.
    async fn finish(&mut self, number: u8) -> Vec<Event> {
        loop {
            let of_it = |event: &(u8, u64, Event)| event.0 == number;
            if self.events.iter().any(|event| of_it(event) && matches!(event.2, Event::Finished(_))) {
                let events: Vec<_> = self.events.extract_if(.., |event| of_it(event)).collect();
                assert!(events.iter().zip(1..).all(|(event, seq)| event.1 == seq), "{events:?}");
                return events.into_iter().map(|event| event.2).collect();
            }
            match self.hear().await.expect("the stream ended before the execution") {
                FromAgent::Event { exec, seq, event } => self.events.push((exec[0], seq, event)),
                other => panic!("{other:?}"),
            }
        }
    }

    async fn run(&mut self, number: u8, work: Work) -> (String, Outcome, bool) {
        self.start(number, work).await.unwrap();
        summary(self.finish(number).await)
    }
}

fn summary(events: Vec<Event>) -> (String, Outcome, bool) {
    let mut said = String::new();
    for event in events {
        match event {
            Event::Started => {}
            Event::Stdout(bytes) | Event::Stderr(bytes) => said.push_str(&String::from_utf8(bytes).unwrap()),
            Event::Display(rich) => said.push_str(&format!("[{} {}]", rich.text, rich.forms[0].0)),
            Event::Result(rich) => said.push_str(&format!("={} {:?}", rich.text, rich.scalar)),
            Event::Error(raised) => said.push_str(&format!("!{}", raised.name)),
            Event::Finished(finished) => return (said, finished.outcome, finished.state_lost),
        }
    }
    panic!("it did not end")
}

fn code(text: &str) -> Work {
    Work::Code { code: text.to_owned(), fresh: false }
}

fn shell(text: &str, stdin: Stdin) -> Work {
    Work::Shell { command: text.to_owned(), stdin }
}

#[tokio::test(start_paused = true)]
async fn scripts_do_what_their_table_says() {
    let mut client = Client::new(Runtime::Python).await;
    let stories: &[(Work, &str, Outcome, bool)] = &[
        (code("out a\nerr b\n\n# c"), "a\nb\n", Outcome::Succeeded, false),
        (code("set k 3\nget k"), "=3 Some(\"3\")", Outcome::Succeeded, false),
        (code("get k"), "=3 Some(\"3\")", Outcome::Succeeded, false),
        (
            Work::Code { code: "get k".to_owned(), fresh: true },
            "Traceback (most recent call last):\nNameError: name 'k' is not defined\n!NameError",
            Outcome::Raised,
            false,
        ),
        (code("text [1]"), "=[1] None", Outcome::Succeeded, false),
        (code("png"), "[<Figure> image/png]", Outcome::Succeeded, false),
        (code("save /mnt/data/f hello\nload /mnt/data/f"), "hello", Outcome::Succeeded, false),
        (code("sleep 9999\nout late"), "late\n", Outcome::Succeeded, false),
        (code("sleep 10001"), "", Outcome::TimedOut, false),
        (code("hang"), "", Outcome::TimedOut, true),
        (code("set k 4"), "", Outcome::Succeeded, false),
        (code("die"), "", Outcome::Died("the interpreter ended: it was killed (signal 9)".to_owned()), true),
        (shell("env SAID\nexit 3", Stdin::Empty), "hello\n", Outcome::Exited(3), false),
        (shell("cat", Stdin::Bytes(b"in".to_vec())), "in", Outcome::Exited(0), false),
        (
            Work::Argv { argv: vec!["out".to_owned(), "x".to_owned()], stdin: Stdin::Empty },
            "x\n",
            Outcome::Exited(0),
            false,
        ),
    ];
    for (number, (work, said, outcome, state_lost)) in (1..).zip(stories) {
        let seen = client.run(number, work.clone()).await;
        assert_eq!(seen, ((*said).to_owned(), outcome.clone(), *state_lost), "{work:?}");
    }
    let (said, _, _) = client.run(99, code("get k")).await;
    assert!(said.contains("NameError"), "what the dead interpreter kept is gone: {said}");
}

#[tokio::test(start_paused = true)]
async fn one_code_at_a_time_and_commands_beside_it() {
    let mut client = Client::new(Runtime::Node).await;
    client.start(1, code("out on\nwait")).await.unwrap();
    assert_eq!(client.start(2, code("out no")).await, Err(Refusal::Busy));
    assert_eq!(client.run(3, shell("out beside", Stdin::Empty)).await.0, "beside\n");
    assert_eq!(client.start(1, code("out again")).await, Ok(Answer::Done), "a retry is harmless");
    assert_eq!(client.call(Call::Stop { exec: [1; 16], how: Stop::Interrupt }).await, Ok(Answer::Done));
    assert_eq!(summary(client.finish(1).await), ("on\n".to_owned(), Outcome::Cancelled, false));
    assert_eq!(client.call(Call::Stop { exec: [1; 16], how: Stop::Kill }).await, Ok(Answer::Done), "it has ended");
    assert_eq!(client.call(Call::Stop { exec: [8; 16], how: Stop::Kill }).await, Err(Refusal::NotFound));
    client.start(4, code("hang")).await.unwrap();
    client.call(Call::Stop { exec: [4; 16], how: Stop::Kill }).await.unwrap();
    assert_eq!(summary(client.finish(4).await), (String::new(), Outcome::Cancelled, true));
}

#[tokio::test(start_paused = true)]
async fn events_are_read_again_from_any_number_and_output_has_a_limit() {
    let mut client = Client::new(Runtime::Shell).await;
    client.start(1, shell("flood 150000\nout more", Stdin::Empty)).await.unwrap();
    let events = client.finish(1).await;
    let bytes: usize = events.iter().map(|event| if let Event::Stdout(data) = event { data.len() } else { 0 }).sum();
    let Some(Event::Finished(finished)) = events.last() else { panic!("{events:?}") };
    assert_eq!((bytes, finished.dropped), (100_000, (50_005, 0)));
    client.call(Call::Attach { exec: [1; 16], after_seq: 2 }).await.unwrap();
    let mut again = Vec::new();
    while again.len() + 2 < events.len() {
        again.push(client.hear().await.unwrap());
    }
    let seqs: Vec<u64> =
        again.iter().map(|one| if let FromAgent::Event { seq, .. } = one { *seq } else { 0 }).collect();
    assert_eq!(seqs, (3..=events.len() as u64).collect::<Vec<_>>());
    assert!(client.start(2, code("out x")).await.is_err(), "a shell has no interpreter");
}

#[tokio::test(start_paused = true)]
async fn files_have_room_and_rights_and_an_order() {
    let mut client = Client::new(Runtime::Shell).await;
    let path = "/mnt/data/sub/file".to_owned();
    let Ok(Answer::Upload(upload)) = client.call(Call::WriteOpen { path: path.clone() }).await else { panic!() };
    client.call(Call::Write { upload, data: b"abc".to_vec() }).await.unwrap();
    assert_eq!(client.call(Call::Stat { path: path.clone() }).await, Err(Refusal::NotFound), "not yet");
    assert_eq!(client.call(Call::Write { upload, data: vec![0; 998] }).await, Err(Refusal::NoSpace));
    client.call(Call::WriteCommit { upload }).await.unwrap();
    let read = client.call(Call::Read { path: path.clone(), offset: 1, length: 9 }).await;
    assert_eq!(read, Ok(Answer::Data { data: b"bc".to_vec(), size: 3 }));
    let list = Call::List { path: "/mnt/data".to_owned(), recursive: true, after: None, limit: 1 };
    let Ok(Answer::Entries { entries, more }) = client.call(list).await else { panic!() };
    assert_eq!((entries[0].path.as_str(), more), ("sub", true));
    let denied = client.call(Call::WriteOpen { path: "/etc/passwd".to_owned() }).await;
    assert_eq!(denied, Err(Refusal::Denied));
    let bad = client.call(Call::Stat { path: "/mnt/../etc".to_owned() }).await;
    assert!(matches!(bad, Err(Refusal::Invalid(_))), "{bad:?}");
    client.call(Call::Remove { path: "/mnt/data/sub".to_owned() }).await.unwrap();
    assert_eq!(client.call(Call::Stat { path }).await, Err(Refusal::NotFound));
}

#[tokio::test(start_paused = true)]
async fn input_reaches_what_reads_it() {
    let mut client = Client::new(Runtime::Shell).await;
    client.start(1, shell("cat\nout end", Stdin::Stream)).await.unwrap();
    for data in [&b"one "[..], b"two ", b""] {
        let message = ToAgent::Input { exec: [1; 16], data: data.to_vec() };
        client.stream.write_all(&frame::encode(&message).unwrap()).await.unwrap();
    }
    assert_eq!(summary(client.finish(1).await), ("one two end\n".to_owned(), Outcome::Exited(0), false));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_was_killed_loses_its_streams_and_no_sandbox() {
    let mut client = Client::new(Runtime::Python).await;
    client.start(1, code("set k 1\nsleep 5000\nget k")).await.unwrap();
    let mut watch = client.driver.watch();
    let next = client.memory.driver();
    assert!(matches!(client.driver.list().await, Err(DriverError::Unavailable { .. })));
    assert!(matches!(watch.recv().await, Err(broadcast::error::RecvError::Closed)));
    while client.hear().await.is_some() {}
    let list = next.list().await.unwrap();
    assert!(list.len() == 1 && list[0].activated && list[0].owner.is_some(), "{list:?}");
    client.stream = next.dial(ID).await.unwrap();
    client.hear().await.unwrap();
    client.hear().await.unwrap();
    client.events.clear();
    client.call(Call::Attach { exec: [1; 16], after_seq: 0 }).await.unwrap();
    assert_eq!(summary(client.finish(1).await).0, "=1 Some(\"1\")");
}

#[tokio::test(start_paused = true)]
async fn faults_come_on_demand() {
    let memory = Memory::new(MemoryConfig::default());
    let driver = memory.driver();
    let template = template(Runtime::Shell);
    driver.ensure_pool(&template).await.unwrap();
    let mut watch = driver.watch();
    memory.next_boots([Boot::Fails("no disk".to_owned()), Boot::Hangs]);
    let began = tokio::time::Instant::now();
    for number in [1, 2, 3] {
        driver.create(SandboxId([number; 16]), &template.pool).await.unwrap();
    }
    let mut seen = Vec::new();
    while seen.len() < 3 {
        match watch.recv().await.unwrap() {
            Change::Gone { id, reason: GoneReason::BootFailed(why) } => seen.push((id.0[0], why)),
            Change::Upsert(sandbox) if sandbox.phase == Phase::Ready => seen.push((sandbox.id.0[0], String::new())),
            _ => {}
        }
    }
    let expected = [(1, "no disk".to_owned()), (3, String::new()), (2, "it was not ready after 20 s".to_owned())];
    assert_eq!(seen, expected);
    assert_eq!(began.elapsed(), Duration::from_secs(20));
    memory.refuse(1);
    assert!(matches!(driver.list().await, Err(DriverError::Unavailable { .. })));
    memory.refuse_only(Operation::Assign, 1);
    let owner = Owner { record: Vec::new() };
    assert!(driver.list().await.is_ok());
    assert!(driver.assign(SandboxId([3; 16]), &owner).await.is_err());
    assert!(driver.assign(SandboxId([3; 16]), &owner).await.is_ok());
    memory.answer_late(Duration::from_secs(3));
    let before = tokio::time::Instant::now();
    driver.list().await.unwrap();
    assert_eq!(before.elapsed(), Duration::from_secs(3));
    memory.answer_late(Duration::ZERO);
    let old = driver.list().await.unwrap()[0].boot_id;
    assert!(memory.reboot(SandboxId([3; 16])));
    while driver.list().await.unwrap()[0].phase != Phase::Ready {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let new = driver.list().await.unwrap()[0].clone();
    assert!(new.boot_id != old && !new.activated && new.owner.is_some(), "{new:?}");
    memory.lose_changes(|| memory.kill(SandboxId([3; 16]), GoneReason::OutOfMemory));
    while !matches!(watch.recv().await, Err(broadcast::error::RecvError::Lagged(_))) {}
    assert_eq!(driver.list().await.unwrap(), []);
}
