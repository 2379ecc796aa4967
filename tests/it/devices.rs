//! GPU devices that a container can open.

use cynode::engine::{Program, devices::visible_devices, probe};
use std::{fs, path::Path};

#[test]
fn container_reports_usable_devices() {
    let home = tempfile::tempdir().unwrap();
    let init = Path::new(env!("CARGO_BIN_EXE_cynode"));
    let settings = tempfile::tempdir().unwrap();
    let wanted = probe::ProbeRequest {
        program: Program::podman("podman", settings.path()).unwrap(),
        runtime: None,
    };
    // No GPU is needed: any device with such a name counts.
    let given = [
        "--device=/dev/null:/dev/nvidia0",
        "--device=/dev/null:/dev/dri/card7",
        "--device=/dev/null:/dev/other",
    ];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let [seen, without] = runtime.block_on(async {
        let probe_env = probe::ProbeEnv {
            init,
            scratch: home.path(),
            node_uuid: None,
        };
        let engine = probe::probe(wanted, probe_env).await.unwrap();
        let seen = visible_devices(&engine, init, home.path(), &given).await;
        let without = visible_devices(&engine, init, home.path(), &[]).await;
        [seen.unwrap(), without.unwrap()]
    });
    assert_eq!(seen, ["/dev/dri/card7", "/dev/nvidia0"]);
    assert_eq!(without, [""; 0]);
    assert_eq!(
        fs::read_dir(home.path()).unwrap().count(),
        0,
        "nothing is left"
    );
}
