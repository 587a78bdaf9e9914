"""Images of others: from a registry with credentials, from archives, and from who means harm; then sessions in them."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
from pathlib import Path

import pytest
import requests

from documents import examples
from sandpool import CLEAN, PROGRAM, command, wait_for

# The guide's examples: commands, and a pool with what they got.
EXAMPLES = [*examples("docs/images.md", "sh"), *examples("docs/images.md", "yaml")]

USER, PASSWORD = "puller", "s3cret-word"
# `htpasswd -nbB puller s3cret-word`
HTPASSWD = "puller:$2y$05$NQt33z34zFMd7Mrh2PiGtux89Gbva/Ci.uI2hiUwPr.H0IhkNdIP.\n"
ARCH = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]


def needs(*programs: str):
    for program in programs:
        if shutil.which(program) is None:
            why = f"there is no {program} here: apt-get install skopeo docker-registry busybox-static"
            if os.environ.get("SANDPOOL_MUST") == "1":
                pytest.fail(f"SANDPOOL_MUST=1, and {why}")
            pytest.skip(why)


KINDS = (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.BLKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)


def layer(*entries) -> bytes:
    """An archive of (name, kind, link), and for files (name, text, mode)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, what, more in entries:
            info = tarfile.TarInfo(name)
            info.mode, info.mtime = 0o755, 1_000_000
            data = None
            if what not in KINDS:
                info.size, data = len(what), io.BytesIO(what)
                info.mode = more or 0o600
            else:
                info.type, info.linkname = what, more or ""
            archive.addfile(info, data)
    return out.getvalue()


class Layout:
    """An image in OCI's layout, made by hand."""

    def __init__(self, place: Path, *layers: bytes, config: dict | None = None, arch: str = ARCH, tag: str = "one"):
        self.place, self.tag = place, tag
        (place / "blobs/sha256").mkdir(parents=True, exist_ok=True)
        (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        digests = [self.blob(data) for data in layers]
        configuration = {"architecture": arch, "os": "linux", "config": config or {},
                         "rootfs": {"type": "layers", "diff_ids": digests}, "history": []}
        document = json.dumps(configuration).encode()
        kind = "application/vnd.oci.image.layer.v1.tar"
        manifest = {
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": self.blob(document), "size": len(document)},
            "layers": [{"mediaType": kind, "digest": d, "size": len(data)} for d, data in zip(digests, layers)],
        }
        text = json.dumps(manifest).encode()
        self.digest = self.blob(text)
        entry = {"mediaType": manifest["mediaType"], "digest": self.digest, "size": len(text),
                 "platform": {"os": "linux", "architecture": arch},
                 "annotations": {"org.opencontainers.image.ref.name": tag}}
        self.entry = entry
        self.index([entry])

    def index(self, entries: list[dict]):
        (self.place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))

    def blob(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        (self.place / "blobs/sha256" / digest).write_bytes(data)
        return f"sha256:{digest}"


def tool() -> list[bytes]:
    """Two layers with a shell and a program; the second changes the first."""
    busybox = Path(shutil.which("busybox")).read_bytes()
    links = [(f"bin/{name}", tarfile.SYMTYPE, "busybox") for name in ("sh", "cat", "echo", "ls", "env", "id", "rm", "printf")]
    first = layer(
        ("bin", tarfile.DIRTYPE, None), ("bin/busybox", busybox, 0o755), *links,
        ("etc/tool/version", b"1\n", 0o600), ("etc/tool/old", b"old", 0o600), ("usr/share/note", b"note\n", 0o400),
    )
    second = layer(("etc/tool/version", b"2\n", 0o640), ("etc/tool/.wh.old", b"", 0o600),
                   ("usr/bin/tool", b"#!/bin/sh\necho tool $(cat /etc/tool/version) $TOOL_MODE\n", 0o700))
    return [first, second]


SAID = {"Env": ["PATH=/usr/bin:/bin", "TOOL_MODE=fast", "HOME=/root"], "Entrypoint": ["/usr/bin/tool"], "User": "nobody"}

POOL = """
listen: 127.0.0.1:0
pools:
  - apiVersion: sandpool.dev/v1alpha1
    kind: SessionPool
    metadata: {{ name: tools }}
    spec:
      containerType: Shell
      image: {image}
      scaleConfiguration: {{ maxConcurrentSessions: 2, readySessionInstances: 1 }}
"""


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    needs("busybox", "skopeo", "docker-registry")
    return Layout(tmp_path_factory.mktemp("layout"), *tool(), config=SAID)


@pytest.fixture(scope="module")
def registry(tmp_path_factory, layout):
    """Debian's registry on loopback, which asks for a password, with the tool in it."""
    place = tmp_path_factory.mktemp("registry")
    (place / "users").write_text(HTPASSWD)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (place / "config.yml").write_text(json.dumps({
        "version": 0.1, "log": {"level": "info"}, "storage": {"filesystem": {"rootdirectory": str(place / "data")}},
        "http": {"addr": f"127.0.0.1:{port}"}, "auth": {"htpasswd": {"realm": "test", "path": str(place / "users")}},
    }))
    log = open(place / "log", "w")
    process = subprocess.Popen(["docker-registry", "serve", place / "config.yml"], stdout=log, stderr=log)

    def answers() -> bool:
        try:
            return requests.get(f"http://127.0.0.1:{port}/v2/", timeout=5).status_code == 401
        except requests.RequestException:
            return False

    wait_for(answers, "the registry")
    host = f"127.0.0.1:{port}"
    skopeo("copy", f"oci:{layout.place}:one", f"docker://{host}/acme/tool:1")
    yield host
    process.terminate()
    process.wait(30)


def skopeo(verb: str, source: str, target: str, *more: str):
    words = ["skopeo", "--insecure-policy", verb, "--dest-tls-verify=false", f"--dest-creds={USER}:{PASSWORD}", *more, source, target]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def images(tmp_path):
    return tmp_path / "images"


def image(*words, images: Path, **more):
    return command("image", *words, "--images", images, **more)


def sessions_of(images: Path, name: str, start):
    server = start("--images", str(images), config=POOL.format(image=name))

    def ran(shell: str) -> dict:
        answer = server.native("POST", "/pools/tools/sessions/user/executions", json={"command": shell})
        assert answer.status_code == 200, answer.text
        return answer.json()

    return ran


def test_an_image_is_pulled_with_credentials_by_tag_and_by_digest_and_sessions_run_in_it(registry, layout, images, start):
    reference = f"{registry}/acme/tool:1"
    refused = image("pull", reference, images=images, check=False)
    assert refused.returncode != 0 and "--username" in refused.stderr, refused.stderr
    refused = image("pull", reference, "--username", USER, images=images, input="wrong\n", check=False)
    assert refused.returncode != 0 and "wrong" not in refused.stderr
    pulled = json.loads(image("--json", "pull", reference, "--username", USER, images=images, input=PASSWORD).stdout)
    assert pulled["name"] == "tool" and pulled["source"]["reference"] == reference and pulled["source"]["config"]["User"] == "nobody"
    # The same by its digest, with a file of credentials, is the same image under another name, and nothing comes twice.
    auth = images.parent / "auth.json"
    encoded = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    auth.write_text(json.dumps({"auths": {registry: {"auth": encoded}}}))
    digest = pulled["source"]["digest"]
    again = image("--json", "pull", f"{registry}/acme/tool@{digest}", "--auth-file", auth, "--name", "tool-b", images=images)
    assert json.loads(again.stdout)["rootfs"] == pulled["rootfs"]
    unknown = image("pull", f"{registry}/acme/none:1", "--auth-file", auth, images=images, check=False)
    assert unknown.returncode != 0 and registry in unknown.stderr
    ran = sessions_of(images, "tool", start)
    # Its layers over each other, its variables, its files readable whoever owned them; a shell that is not bash.
    assert ran("tool")["stdout"] == "tool 2 fast\n"
    assert ran("cat /usr/share/note; ls /etc/tool; id -u; echo $HOME $SHELL")["stdout"] == "note\nversion\n1000\n/home/sandbox /bin/sh\n"
    assert ran("echo x > /mnt/data/f && cat /mnt/data/f")["stdout"] == "x\n"
    # A command longer than an argument may be.
    long = ran("echo begins\n# " + "x" * 200_000 + "\necho ends")
    assert (long["stdout"], long["exitCode"]) == ("begins\nends\n", 0)
    refused = image("rm", "tool", images=images, check=False)
    assert refused.returncode == 0 or "in use" in refused.stderr


def test_a_pull_that_was_cut_goes_on_from_there(registry, layout, images):
    blobs = images / "blobs/sha256"
    blobs.mkdir(parents=True)
    largest = max((layout.place / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    # As much as a pull that was cut would have left; skopeo may have packed it for the registry, so ask that which it is.
    manifest = requests.get(
        f"http://{registry}/v2/acme/tool/manifests/1", auth=(USER, PASSWORD), timeout=30,
        headers={"Accept": "application/vnd.oci.image.manifest.v1+json"},
    ).json()
    part = max(manifest["layers"], key=lambda part: part["size"])
    whole = requests.get(f"http://{registry}/v2/acme/tool/blobs/{part['digest']}", auth=(USER, PASSWORD), timeout=60).content
    (blobs / (part["digest"].split(":")[1] + ".partial")).write_bytes(whole[: len(whole) // 2])
    pulled = image("pull", f"{registry}/acme/tool:1", "--username", USER, images=images, input=PASSWORD)
    assert (blobs / part["digest"].split(":")[1]).read_bytes() == whole and not list(blobs.glob("*.partial"))
    assert "tool" in pulled.stdout and largest.stat().st_size > 0
    # What came wrong before is found out, and not used.
    (blobs / part["digest"].split(":")[1]).unlink()
    (blobs / (part["digest"].split(":")[1] + ".partial")).write_bytes(b"x" * (len(whole) // 2))
    image("rm", "tool", images=images)
    wrong = image("pull", f"{registry}/acme/tool:1", "--username", USER, images=images, input=PASSWORD, check=False)
    assert wrong.returncode != 0 and "came as" in wrong.stderr, wrong.stderr
    image("pull", f"{registry}/acme/tool:1", "--username", USER, images=images, input=PASSWORD)


def key_pair(place: Path, name: str) -> Path:
    """A private key as cosign signs with; the public one is beside it."""
    key = place / f"{name}.key"
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key], check=True)
    subprocess.run(["openssl", "ec", "-in", key, "-pubout", "-out", key.with_suffix(".pub")], check=True, capture_output=True)
    return key


def sign(registry: str, place: Path, digest: str, key: Path, about: str | None = None, repository: str = "acme/tool"):
    """What `cosign sign --key` pushes beside an image: a signed statement about its digest."""
    statement = json.dumps({"critical": {"identity": {"docker-reference": f"{registry}/{repository}"},
                                         "image": {"docker-manifest-digest": about or digest},
                                         "type": "cosign container image signature"}, "optional": None}).encode()
    (place / "statement").write_bytes(statement)
    signed = subprocess.run(["openssl", "dgst", "-sha256", "-sign", key, place / "statement"], capture_output=True, check=True).stdout
    base = f"http://{registry}/v2/{repository}"

    def push(data: bytes) -> str:
        where = requests.post(f"{base}/blobs/uploads/", auth=(USER, PASSWORD), timeout=30).headers["Location"]
        named = "sha256:" + hashlib.sha256(data).hexdigest()
        done = requests.put(where, params={"digest": named}, data=data, auth=(USER, PASSWORD), timeout=30,
                            headers={"Content-Type": "application/octet-stream"})
        assert done.status_code == 201, done.text
        return named

    manifest = {
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": push(b"{}"), "size": 2},
        "layers": [{"mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "digest": push(statement), "size": len(statement),
                    "annotations": {"dev.cosignproject.cosign/signature": base64.b64encode(signed).decode()}}],
    }
    tag = digest.replace(":", "-") + ".sig"
    done = requests.put(f"{base}/manifests/{tag}", json=manifest, auth=(USER, PASSWORD), timeout=30,
                        headers={"Content-Type": "application/vnd.oci.image.manifest.v1+json"})
    assert done.status_code == 201, done.text


def test_an_image_must_be_signed_where_that_is_asked_for(registry, images, tmp_path, start):
    for name in ("ours", "other"):
        key_pair(tmp_path, name)

    def pull(*words, check=False):
        return image("--json", "pull", f"{registry}/acme/tool:1", "--username", USER, *words, images=images, input=PASSWORD, check=check)

    def pool(key: str) -> str:
        return POOL.format(image="tool").replace("image: tool", f"image: tool\n      imageKey: {tmp_path}/{key}")

    ours = ("--key", tmp_path / "ours.pub")
    refused = pull(*ours)
    assert refused.returncode != 0 and "not signed" in refused.stderr, refused.stderr
    digest = json.loads(pull(check=True).stdout)["source"]["digest"]
    # One that was got without a look is no signed one.
    with pytest.raises(AssertionError, match="not known to be signed"):
        start("--images", str(images), config=pool("ours.pub"))
    for key, about in (("other.key", None), ("ours.key", "sha256:" + "0" * 64)):
        sign(registry, tmp_path, digest, tmp_path / key, about)
        refused = pull(*ours)
        assert refused.returncode != 0 and "of others" in refused.stderr, refused.stderr
    sign(registry, tmp_path, digest, tmp_path / "ours.key")
    assert len(json.loads(pull(*ours, check=True).stdout)["source"]["signedBy"]) == 64
    with pytest.raises(AssertionError, match="another key"):
        start("--images", str(images), config=pool("other.pub"))
    assert start("--images", str(images), config=pool("ours.pub")).is_ready() in (True, False)
    assert "no public key" in pull("--key", tmp_path / "ours.key").stderr


def test_an_image_that_lost_its_name_is_removed_when_nobody_runs_in_it(layout, images, tmp_path, start):
    def kept() -> set[str]:
        return {path.name for path in images.iterdir() if len(path.name) == 64}

    def pruned() -> dict:
        return json.loads(image("--json", "prune", images=images).stdout)

    image("import", layout.place, "--name", "tool", images=images)
    [before] = kept()
    server = start("--images", str(images), config=POOL.format(image="tool"))
    tools = server.pool("tools")
    assert tools.modern("user", shellCommand="tool")["result"]["stdout"] == "tool 2 fast\n"
    other = Layout(tmp_path / "other", *tool(), layer(("etc/tool/version", b"3\n", 0o644)), config=SAID)
    image("import", other.place, "--name", "tool", images=images)
    assert before in kept() and len(kept()) == 2
    assert pruned()["keptForServer"] and before in kept(), "a session runs in it"
    assert tools.modern("user", shellCommand="tool")["result"]["stdout"] == "tool 2 fast\n"
    server.down()
    told = pruned()
    assert (told["keptForServer"], told["removedImages"]) == (False, 1) and told["freedBytes"] > 0, told
    assert len(kept()) == 1 and before not in kept()
    assert pruned() == {"freedBytes": 0, "keptForServer": False, "removedImages": 0}
    again = start("--images", str(images), config=POOL.format(image="tool"))
    assert again.pool("tools").modern("user", shellCommand="tool")["result"]["stdout"] == "tool 3 fast\n"


def test_of_an_image_for_several_machines_this_ones_is_taken(registry, layout, images, tmp_path):
    other = "arm64" if ARCH == "amd64" else "amd64"
    both = Layout(tmp_path / "both", *tool(), config=SAID)
    foreign = Layout(tmp_path / "both", layer(("etc/x", b"x", 0o600)), arch=other)
    index = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
                        "manifests": [{k: v for k, v in entry.items() if k != "annotations"} for entry in (foreign.entry, both.entry)]}).encode()
    digest = both.blob(index)
    both.index([{"mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest, "size": len(index),
                 "annotations": {"org.opencontainers.image.ref.name": "both"}}])
    imported = json.loads(image("--json", "import", both.place, "--name", "both", images=images).stdout)
    assert imported["source"]["digest"] == both.digest
    foreign.index([foreign.entry])
    refused = image("import", foreign.place, "--name", "foreign", images=images, check=False)
    assert refused.returncode != 0 and f"linux/{ARCH}" in refused.stderr and other in refused.stderr


def test_archives_are_imported(layout, images, tmp_path, start):
    for form, name in (("oci", "layout"), ("oci-archive", "oci.tar"), ("docker-archive", "docker.tar")):
        target = tmp_path / name
        reference = f"{form}:{target}:acme/tool:1" if form != "oci" else f"oci:{target}:one"
        skopeo("copy", f"oci:{layout.place}:one", reference)
        called = name.partition(".")[0]
        imported = json.loads(image("--json", "import", target, "--name", called, images=images).stdout)
        assert imported["runtime"] == "shell" and imported["sizeInBytes"] > 500_000
    assert sessions_of(images, "docker", start)("tool")["stdout"] == "tool 2 fast\n"
    listed = json.loads(image("--json", "ls", images=images).stdout)["value"]
    assert {"layout", "oci", "docker"} <= {one["name"] for one in listed if one["state"] == "own"}
    # What no image is made of any more goes.
    for name in ("layout", "oci", "docker"):
        image("rm", name, images=images, check=False)
    for name in ("python", "node", "shell"):
        refused = image("import", tmp_path / "oci.tar", "--name", name, images=images, check=False)
        assert refused.returncode != 0 and "built here" in refused.stderr
    broken = tmp_path / "broken.tar"
    broken.write_bytes(b"no archive at all" * 100)
    assert "cannot be read" in image("import", broken, images=images, check=False).stderr
    assert image("import", tmp_path / "missing", images=images, check=False).returncode != 0


def test_the_guides_commands_do_what_it_says(registry, layout, images, tmp_path, start):
    commands, pool = EXAMPLES
    # The guide's registries are ours, and have what it names.
    for name in ("library/debian:12-slim", "team/tool:1.4"):
        skopeo("copy", f"oci:{layout.place}:one", f"docker://{registry}/{name}")
    manifest = requests.head(f"http://{registry}/v2/team/tool/manifests/1.4", auth=(USER, PASSWORD), timeout=30,
                             headers={"Accept": "application/vnd.oci.image.manifest.v1+json"})
    script = commands.code
    for theirs, ours in {"docker.io/": f"{registry}/", "registry.example.com/": f"{registry}/", "--username ci": f"--username {USER}",
                         "sha256:5ad0e3...": manifest.headers["Docker-Content-Digest"]}.items():  # fmt: skip
        assert theirs in script
        script = script.replace(theirs, ours)
    # Its files are here.
    skopeo("copy", f"oci:{layout.place}:one", f"oci-archive:{tmp_path}/tool.tar:team/tool:1.4")
    skopeo("copy", f"oci:{layout.place}:one", f"docker-archive:{tmp_path}/docker.tar:team/tool:1.4")
    shutil.copytree(layout.place, tmp_path / "layout")
    login = tmp_path / ".docker/config.json"
    login.parent.mkdir()
    login.write_text(json.dumps({"auths": {registry: {"auth": base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()}}}))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sandpool").symlink_to(PROGRAM)
    variables = {**CLEAN, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "HOME": str(tmp_path), "SANDPOOL_IMAGES": str(images), "TOKEN": PASSWORD}
    done = subprocess.run(["bash", "-euxo", "pipefail", "-c", script], cwd=tmp_path, env=variables, capture_output=True, text=True,
                          timeout=120, stdin=subprocess.DEVNULL)  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    listed = {one["name"] for one in json.loads(image("--json", "ls", images=images).stdout)["value"] if one["state"] == "own"}
    assert listed == {"debian", "layout"}, "the last two commands remove the others"
    # What skopeo writes into a docker-archive has a longer name: either is it, and nothing else.
    refused = image("import", tmp_path / "docker.tar", "--tag", "team/tool:1.5", "--name", "tool", images=images, check=False)
    assert refused.returncode != 0 and "docker.io/team/tool:1.4" in refused.stderr
    for tag in ("docker.io/team/tool:1.4", "team/tool:1.4"):
        image("import", tmp_path / "docker.tar", "--tag", tag, "--name", "tool", images=images)
    server = start("--images", str(images), "--listen", "127.0.0.1:0", config=pool.code)
    answer = server.native("POST", "/pools/tools/sessions/user/executions", json={"command": "tool"})
    assert answer.json()["stdout"] == "tool 2 fast\n", answer.text


def harmful(outside: Path) -> dict[str, tuple[bytes, ...]]:
    up = "../" * 20 + str(outside).lstrip("/")
    through = str(outside.parent)
    return {
        "leads out": (layer((up, b"bad", 0o644)),),
        "absolute": (layer((str(outside), b"bad", 0o644)),),
        "through a link": (layer(("door", tarfile.SYMTYPE, through), (f"door/{outside.name}", b"bad", 0o644)),),
        "through a link of an older layer": (layer(("door", tarfile.SYMTYPE, through)), layer((f"door/{outside.name}", b"bad", 0o644))),
        "over a link": (layer(("door", tarfile.SYMTYPE, str(outside))), layer(("door", b"bad", 0o644))),
        "hard link out": (layer(("copy", tarfile.LNKTYPE, str(outside)), ("copy", b"bad", 0o644)),),
        "hard link up": (layer(("copy", tarfile.LNKTYPE, up), ("copy", b"bad", 0o644)),),
        "whiteout outside": (layer(("door", tarfile.SYMTYPE, through)), layer((f"door/.wh.{outside.name}", b"", 0o644))),
        "opaque outside": (layer(("door", tarfile.SYMTYPE, through)), layer(("door/.wh..wh..opq", b"", 0o644))),
        "whiteout of above": (layer(("a/b", b"x", 0o644)), layer(("a/.wh...", b"", 0o644))),
        "devices": (layer(("dev/sda", tarfile.BLKTYPE, None), ("dev/mem", tarfile.CHRTYPE, None), ("pipe", tarfile.FIFOTYPE, None)),),
        "etc elsewhere": (layer(("etc", tarfile.SYMTYPE, "/etc"), ("usr", tarfile.SYMTYPE, through), ("bin", tarfile.SYMTYPE, "/bin")),),
        "the whole machine": (layer(("machine", tarfile.SYMTYPE, "/proc/1/root")), layer(("machine" + str(outside), b"bad", 0o644))),
    }


def test_images_that_mean_harm_are_refused_or_contained(images, tmp_path):
    place = tmp_path / "outside"
    place.mkdir()
    outside = place / "kept"
    outside.write_text("untouched")
    before = {path: path.stat().st_mtime_ns for path in (outside, Path("/etc/passwd"))}
    for number, (what, layers) in enumerate(harmful(outside).items()):
        made = Layout(tmp_path / f"bad-{number}", *layers)
        done = image("import", made.place, "--name", f"bad-{number}", images=images, check=False)
        assert outside.read_text() == "untouched", what
        assert {path: path.stat().st_mtime_ns for path in before} == before, what
        assert sorted(os.listdir(place)) == ["kept"], what
        assert not Path("/etc/sandpool-image.json").exists(), what
        if done.returncode != 0:
            assert "layer" in done.stderr or "way" in done.stderr, (what, done.stderr)
            assert not (images / "names" / f"bad-{number}").exists() and not list(images.glob("partial-*")), what
        else:
            rootfs = Path(json.loads(image("--json", "import", made.place, "--name", f"bad-{number}", images=images).stdout)["rootfs"])
            kinds = [path.lstat().st_mode & 0o170000 for path in rootfs.rglob("*")]
            assert set(kinds) <= {0o100000, 0o040000, 0o120000}, what
            assert not any(path.lstat().st_mode & 0o6000 for path in rootfs.rglob("*")), what


def test_images_that_are_too_large_are_refused(images, tmp_path):
    bomb = Layout(tmp_path / "bomb", layer(("zeros", bytes(8 << 20), 0o644)))
    refused = image("import", bomb.place, "--name", "bomb", "--max-size", "4Mi", images=images, check=False)
    assert refused.returncode != 0 and "too large" in refused.stderr and "--max-size" in refused.stderr, refused.stderr
    # A name of a gigabyte: what reads it has memory for two, and ends before.
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = b"L", 8 << 30
    endless = tmp_path / "endless.tar"
    with open(endless, "wb") as out:
        out.write(header.tobuf(format=tarfile.GNU_FORMAT))
        out.truncate(9 << 30)
    refused = image("import", endless, "--name", "endless", images=images, check=False, timeout=300)
    assert refused.returncode != 0, refused.stderr
    assert not list(images.glob("partial-*"))
    # Nothing is left to be in the way.
    assert json.loads(image("--json", "prune", images=images).stdout)["freedBytes"] >= 0
    assert [path.name for path in (images / "blobs/sha256").iterdir()] == ["lock"]
