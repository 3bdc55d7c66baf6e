//! A network that the test plays: it brings so many bytes, and no more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;

async fn connected() -> [TcpStream; 2] {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    [near, listener.accept().await.unwrap().0]
}

/// Brings `most` bytes from one to the other, `chunk` at a time; then it closes the gate, and nothing comes through.
async fn bring(from: impl AsyncRead, to: impl AsyncWrite, most: usize, chunk: usize, is_open: Arc<AtomicBool>) {
    tokio::pin!(from, to);
    let (mut left, mut room) = (most, vec![0; chunk]);
    while left > 0 {
        let wanted = left.min(chunk);
        match from.read(&mut room[..wanted]).await {
            // They have left.
            Ok(0) | Err(_) => return,
            Ok(read) => {
                if to.write_all(&room[..read]).await.is_err() {
                    return;
                }
                left -= read;
                tokio::task::yield_now().await;
            }
        }
    }
    is_open.store(false, Ordering::SeqCst);
    pending::<()>().await;
}

/// A led connection, and the server's end of it.
async fn led(tasks: &mut JoinSet<()>, most: [usize; 2], chunk: usize) -> (Stream, TcpStream, Arc<AtomicBool>) {
    let ([near, there], [here, far], [server, peer]) = (connected().await, connected().await, connected().await);
    let is_open = Arc::new(AtomicBool::new(true));
    let ((there_read, there_write), (here_read, here_write)) = (there.into_split(), here.into_split());
    tasks.spawn(bring(there_read, here_write, most[0], chunk, Arc::clone(&is_open)));
    tasks.spawn(bring(here_read, there_write, most[1], chunk, Arc::clone(&is_open)));
    let opens = Arc::clone(&is_open);
    let gate = Gate { fault: FaultId(1), is_open: Box::new(move |_| opens.load(Ordering::SeqCst)) };
    (Stream::Led(Box::new(Led::through(Stream::Plain(server), gate, [near, far]))), peer, is_open)
}

fn bytes(count: usize, seed: u8) -> Vec<u8> {
    (0..count).map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8).wrapping_add(seed)).collect()
}

/// Both directions at once, whatever is brought of them; whether both are what was sent.
async fn exchanges(sizes: [usize; 2], most: [usize; 2], chunk: usize) -> bool {
    let mut tasks = JoinSet::new();
    let (mut stream, mut peer, _) = led(&mut tasks, most, chunk).await;
    let [asked, answered] = [bytes(sizes[0], 1), bytes(sizes[1], 2)];
    let (mut got, mut heard) = (Vec::new(), vec![0; sizes[0]]);
    let (mut reader, mut writer) = stream.split();
    let on = keep_on(reader.led());
    let (mut peer_reads, mut peer_writes) = peer.split();
    let all = async {
        tokio::join!(
            async { writer.write_all(&asked).await.unwrap() },
            async { reader.read_to_end(&mut got).await.unwrap() },
            async { peer_reads.read_exact(&mut heard).await.unwrap() },
            async {
                peer_writes.write_all(&answered).await.unwrap();
                peer_writes.shutdown().await.unwrap();
            },
        )
    };
    tokio::select! {
        _ = all => {}
        never = on => match never {},
    }
    got == answered && heard == asked
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn wherever_the_network_loses_what_it_has_all_arrives_once_and_in_order(
        sizes in prop::array::uniform2(0_usize..300_000),
        most in prop::array::uniform2(prop_oneof![0_usize..100_000, 0_usize..1000, Just(usize::MAX)]),
        chunk in 1_usize..20_000,
    ) {
        // Many small steps take long, and are of interest where the end is near.
        let chunk = chunk.max(sizes[0].max(sizes[1]) / 200);
        prop_assert!(block_on(exchanges(sizes, most, chunk)));
    }
}

#[tokio::test]
async fn no_more_than_is_said_is_on_the_way() {
    let mut tasks = JoinSet::new();
    let (mut stream, mut peer, is_open) = led(&mut tasks, [0, 0], 1).await;
    is_open.store(true, Ordering::SeqCst);
    let (_, mut writer) = stream.split();
    let all = bytes(MAX_ON_THE_WAY, 3);
    writer.write_all(&all).await.unwrap();
    let more = poll_fn(|cx| Poll::Ready(Pin::new(&mut writer).poll_write(cx, b"x").is_pending())).await;
    assert!(more, "it takes more");
    is_open.store(false, Ordering::SeqCst);
    writer.write_all(b"x").await.unwrap();
    drop(writer);
    let mut heard = vec![0; MAX_ON_THE_WAY + 1];
    let (reader, _) = stream.split();
    tokio::select! {
        read = peer.read_exact(&mut heard) => drop(read.unwrap()),
        never = keep_on(reader.led()) => match never {},
    }
    assert_eq!((&heard[..MAX_ON_THE_WAY], heard.last()), (&all[..], Some(&b'x')));
}

#[tokio::test]
async fn what_is_over_and_empty_is_the_connection_itself_again() {
    let mut tasks = JoinSet::new();
    let (stream, mut peer, is_open) = led(&mut tasks, [usize::MAX; 2], 100).await;
    is_open.store(true, Ordering::SeqCst);
    let mut stream = stream.freed();
    assert_eq!(stream.leaders().collect::<Vec<_>>(), [FaultId(1)]);
    stream.split().1.write_all(b"x").await.unwrap();
    is_open.store(false, Ordering::SeqCst);
    let mut stream = stream.freed();
    assert_eq!(stream.leaders().count(), 1, "there is something on the way");
    let (reader, _) = stream.split();
    tokio::select! {
        read = peer.read_u8() => assert_eq!(read.unwrap(), b'x'),
        never = keep_on(reader.led()) => match never {},
    }
    drop(reader);
    assert!(matches!(stream.freed(), Stream::Plain(_)));
}

#[tokio::test]
async fn how_the_server_ends_is_told_behind_what_it_sent() {
    let mut tasks = JoinSet::new();
    let (mut stream, mut peer, is_open) = led(&mut tasks, [usize::MAX, 3], 100).await;
    peer.write_all(b"hello").await.unwrap();
    drop(peer);
    let (mut reader, _) = stream.split();
    let mut heard = Vec::new();
    reader.read_to_end(&mut heard).await.unwrap();
    assert_eq!((&heard[..], is_open.load(Ordering::SeqCst)), (&b"hello"[..], false));
}

#[tokio::test]
async fn what_is_in_the_inner_of_two_goes_on_though_the_outer_reads_no_more() {
    let ([server, mut peer], [near, _lost], [far, _never]) = (connected().await, connected().await, connected().await);
    let is_open = Arc::new(AtomicBool::new(true));
    let opens = Arc::clone(&is_open);
    let gate = Gate { fault: FaultId(1), is_open: Box::new(move |_| opens.load(Ordering::SeqCst)) };
    let mut inner = Stream::Led(Box::new(Led::through(Stream::Plain(server), gate, [near, far])));
    inner.split().1.write_all(b"x").await.unwrap();
    let gate = Gate { fault: FaultId(2), is_open: Box::new(|_| true) };
    let mut outer = Stream::Led(Box::new(Led::through(inner, gate, connected().await)));
    peer.shutdown().await.unwrap();
    let (mut reader, _) = outer.split();
    assert_eq!(reader.read(&mut [0]).await.unwrap(), 0, "the server sends no more");
    is_open.store(false, Ordering::SeqCst);
    let heard = tokio::time::timeout(Duration::from_secs(10), async {
        tokio::select! {
            read = peer.read_u8() => read.unwrap(),
            never = keep_on(reader.led()) => match never {},
        }
    });
    assert_eq!(heard.await.unwrap(), b'x');
}
