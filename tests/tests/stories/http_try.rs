//! try
use baremesh_tests::{Member, Mesh, output_of, run};
#[test]
fn http_try() {
    let mesh = Mesh::new("httptry");
    let (web, store) = (mesh.member("web", 1, &[]), mesh.member("store", 2, &["store"]));
    let _server = store.host.spawn("py", store.host.sh("cd /usr/share/common-licenses && exec python3 -m http.server 8080 --bind 127.0.0.1 --protocol HTTP/1.1"));
    store.register("store", ["--port", "80:8080", "--protocol", "http"]);
    web.wait_for_endpoints("store.default", 1);
    std::thread::sleep(std::time::Duration::from_secs(1));
    for cmd in [
        "curl -sv http://store/ -m 5 | tail -3",
        "curl -sv http://store/GPL-3 http://store/GPL-2 -m 5 -o /dev/null -o /dev/null",
        "curl -sv http://store/nothere -m 5",
        "curl -sv -X POST -d abc http://store/ -m 5",
        "curl -sv --http2-prior-knowledge http://store/BSD -m 5",
        "printf 'GET / HTTP/1.1\\r\\nHost: a\\r\\nContent-Length: 3\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n' | timeout 3 nc store 80",
    ] {
        let out = run(web.host.sh(cmd));
        eprintln!("{cmd}\n{}{}", String::from_utf8_lossy(&out.stderr), String::from_utf8_lossy(&out.stdout));
    }
    for m in [&web, &store] {
        for l in m.log() {
            eprintln!("{l}");
        }
    }
    eprintln!(
        "{}",
        web.metrics().lines().filter(|l| l.contains("istio_requests")).collect::<Vec<_>>().join("\n")
    );
    let _ = output_of(web.host.sh("true"));
    panic!("done");
}
