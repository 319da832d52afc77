//! An agent that means ill: in the place of the real one in a guest, it says to the host what a hostile guest could say.

use std::io::{Read, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use conuma_agent_proto::{
    AutoOnline, CgroupMode, Generation, GuestFacts, GuestNodeFacts, HoldingOutcome, MAX_FRAME, MemoryState, NodeReport,
    PORT, Prepared, Pushed, Reply, Report, Request, RequestBody, RequestId, Resource, Response, decode_request,
    encode_response,
};
use conuma_topology::{Bytes, GuestCpuSet, GuestNodeId};
use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

/// What it lies about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Lie {
    /// Says that it left CPUs, made room and has memory, and does nothing.
    Claims,
    /// Its numbers are as large as numbers get.
    Absurd,
    /// Answers fifty thousand times what nobody asked, and reports as often as if pressed.
    Flood,
    /// Its answers are no answers.
    Malformed,
    /// Announces a message of 4 GiB.
    Huge,
    /// Sends a message that never ends, a byte at a time.
    Endless,
    /// Speaks a version that is no longer spoken.
    Old,
    /// Answers nothing but greetings.
    Mute,
    /// Its texts would move the cursor of a terminal and forge lines of a log.
    Escapes,
}

/// Answers the host for ever.
pub fn lie(about: Lie) -> Result<()> {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, PORT).context("listening")?;
    for stream in listener.incoming() {
        if let Err(error) = converse(stream?, about) {
            writeln!(std::io::stderr(), "the conversation ended: {error:#}")?;
        }
    }
    Ok(())
}

fn converse(mut stream: VsockStream, about: Lie) -> Result<()> {
    let mut generation = Generation::default();
    loop {
        let Request { id, generation: newest, body, .. } = decode_request(&read_frame(&mut stream)?)?;
        generation = generation.max(newest);
        let greeting = matches!(body, RequestBody::Hello(_));
        let reply = match body {
            RequestBody::Hello(_) => Some(Reply::Hello(facts(about, generation)?)),
            _ if about == Lie::Mute => None,
            body => Some(answer(body, about)),
        };
        if let Some(reply) = reply {
            write_frame(&mut stream, &encode_response(&Response { id, body: Ok(reply) }))?;
        }
        if greeting {
            misbehave(&mut stream, about)?;
        }
    }
}

/// What it does as soon as it is believed to be an agent.
fn misbehave(stream: &mut VsockStream, about: Lie) -> Result<()> {
    match about {
        Lie::Flood => {
            let message = |id, reply| encode_response(&Response { id, body: Ok(reply) });
            let answer = message(RequestId(u64::MAX - 1), Reply::Report(report(about)));
            let pushed = Pushed { resource: Resource::Memory, report: report(about) };
            let pushed = message(RequestId::PUSHED, Reply::Pushed(pushed));
            for _ in 0..50_000 {
                write_frame(stream, &answer)?;
                write_frame(stream, &pushed)?;
            }
        }
        Lie::Malformed => write_frame(stream, &[0xff; 4096])?,
        Lie::Huge => {
            stream.write_all(&u32::MAX.to_be_bytes())?;
            stream.write_all(&[0; 65536])?;
        }
        Lie::Endless => {
            stream.write_all(&(MAX_FRAME as u32).to_be_bytes())?;
            loop {
                stream.write_all(&[0])?;
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        Lie::Claims | Lie::Absurd | Lie::Old | Lie::Mute | Lie::Escapes => {}
    }
    Ok(())
}

fn answer(body: RequestBody, about: Lie) -> Reply {
    match body {
        RequestBody::ApplyHolding { cpus } => {
            let quiesced = GuestCpuSet::range(0, 63).difference(&cpus);
            Reply::Holding(HoldingOutcome { held: cpus, quiesced, ..HoldingOutcome::default() })
        }
        RequestBody::PrepareMemory { node, bytes } => Reply::Prepared(Prepared {
            node,
            free_before: bytes,
            free_after: bytes,
            migrated: Bytes::ZERO,
            reclaimed: Bytes::ZERO,
            enough: true,
            spare: bytes,
            timings: Vec::new(),
        }),
        RequestBody::ConfirmMemory { node, at_least } => Reply::Memory(MemoryState {
            node,
            total: at_least,
            free: at_least,
            online: at_least,
            movable: at_least,
            offline: Bytes::ZERO,
            satisfied: true,
            waited: Duration::ZERO,
        }),
        RequestBody::Report | RequestBody::Hello(_) | RequestBody::Watch { .. } => Reply::Report(report(about)),
    }
}

fn report(about: Lie) -> Report {
    let much = if about == Lie::Absurd { Bytes(u64::MAX) } else { Bytes::mib(64) };
    let node = |node| NodeReport {
        node: GuestNodeId(node),
        total: much,
        free: much,
        available: much,
        file: much,
        anonymous: much,
        movable: much,
        huge_total: much,
        huge_free: much,
        blocks_online: much,
        blocks_offline: much,
        refaults: Some(much.0),
        active_file: Some(much),
        shmem: Some(much),
        kept: Some(much),
    };
    Report { uptime: Duration::from_secs(1), nodes: (0..4).map(node).collect(), ..Report::default() }
}

fn facts(about: Lie, newest: Generation) -> Result<GuestFacts> {
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online")?;
    let absurd = about == Lie::Absurd;
    let text = if about == Lie::Escapes { "\u{1b}[2J\u{1b}[Hroot@host# \r\n2026 ERROR forged" } else { "lies" };
    let memory = if absurd { Bytes(u64::MAX) } else { Bytes::mib(192) };
    let node = |node| GuestNodeFacts { node: GuestNodeId(node), cpus: GuestCpuSet::new(), memory };
    Ok(GuestFacts {
        version: if about == Lie::Old { 0 } else { 1 },
        agent_version: text.into(),
        kernel_release: text.into(),
        boot_id: text.into(),
        cpus_online: online.trim().parse()?,
        nodes: (0..4).map(node).collect(),
        cgroup_mode: CgroupMode::Unified,
        init_on_alloc: Some(false),
        auto_online: AutoOnline::OnlineMovable,
        memory_block: Some(Bytes::mib(128)),
        psi: true,
        newest: if absurd { Generation(u64::MAX) } else { newest },
        holding: None,
    })
}

fn read_frame(stream: &mut VsockStream) -> Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_FRAME {
        bail!("the host sends {length} bytes");
    }
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame)?;
    Ok(frame)
}

fn write_frame(stream: &mut VsockStream, frame: &[u8]) -> Result<()> {
    stream.write_all(&(frame.len() as u32).to_be_bytes())?;
    Ok(stream.write_all(frame)?)
}
