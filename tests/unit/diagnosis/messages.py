"""What ranks write, in the forms of CANN, HCCL, MindSpore, MindFormers and Python; in own words
where a form leaves room. ``{t}`` is the time, ``{pid}``, ``{rank}``, ``{dev}``, ``{ip}`` are the
writer's own, ``{peer}`` and ``{peer_ip}`` those of another rank."""

from __future__ import annotations

HCCL = "[ERROR] HCCL({pid},python):{t} [{file}.cc:{line}] [{pid}]"
MINDSPORE = "[ERROR] {module}({pid},ffff81f2,python):{t} [mindspore/ccsrc/{file}.cc:{line}] "
CODE = "{code}: {t} "
CODE_PID = "{code}: [PID: {pid}] {t} "
TITLE = "[PID: {pid}] {t} {title}({code}): "


def code(name, text, title="Execution_Error"):
    """The three forms of a line with a code."""
    return [
        [CODE.replace("{code}", name) + text],
        [CODE_PID.replace("{code}", name) + text],
        [TITLE.replace("{code}", name).replace("{title}", title) + text],
    ]


def python(error, *, where="glm2/train.py"):
    return [
        [
            "Traceback (most recent call last):",
            f'  File "{where}", line {{line}}, in <module>',
            "    main()",
            f'  File "{where}", line {{line}}, in main',
            "    step(batch)",
            error,
        ]
    ]


ROOTS = {
    "EI0001": [
        *code("EI0001", "Environment variable HCCL_BUFFSIZE is invalid, its value is -3."),
        [HCCL + "[InitGroupStage][EnvConfig]set ifname to [ib9] by HCCL_SOCKET_IFNAME, not found"],
    ],
    "EI0003": code("EI0003", "In hcom_all_reduce, value of parameter count is invalid: 0."),
    "EI0004": [
        *code("EI0004", "The ranktable or rank is invalid. Reason: device_id 9 is out of range"),
        [HCCL + "[InitGroupStage][RanktableCheck]errNo[0x5010001] device_ip[] is invalid"],
        [HCCL + "[InitGroupStage][RanktableConfig]path /data/hccl.json is not a valid real path"],
    ],
    "EI0005": [
        *code(
            "EI0005", "The arguments for collective communication are inconsistent between ranks"
        ),
        [HCCL + "[InitChannelStage][ParameterConflict]CMD information count check fail. local[8]"],
    ],
    "EI0007": code("EI0007", "Failed to allocate resource[notify]. Reason: no more of it"),
    "EI0008": code("EI0008", "The HCCL versions are inconsistent. local version[7.1], remote[7.0]"),
    "EI0010": code("EI0010", "P2P communication between devices {dev} and 0 failed"),
    "EI0011": code("EI0011", "Failed to allocate 3145728 bytes of NPU memory", "Resource_Error"),
    "EI0013": [
        *code("EI0013", "An error CQE occurred. Local information: server {ip}, device ID {dev}."),
        [HCCL + "[TaskExecStage][HeartbeatAbnormal][ROCE CQE ERROR]cqe error status[12], x"],
    ],
    "EI0014": [
        *code("EI0014", "Value 10.9.9.9 for ranktable is inconsistent with the NIC"),
        [
            "[ERROR] HCCP({pid},exec):{t} [ra_host.c:480]tid:1, the IP address(10.9.9.9) in the "
            "ranktable is inconsistent with the IP address({ip}) of the network adapter"
        ],
    ],
    "EI0016": [
        *code("EI0016", "Configuration tls differs", "Config_Error"),
        [HCCL + '[InitGroupStage][RanktableCheck] Value Disable for config "tls" is invalid.'],
    ],
    "EI0017": code("EI0017", "The rank table lacks an item: device_ip"),
    "EI0019": [
        *code("EI0019", "Failed to bind the host port 60000"),
        [HCCL + "[HcclSocket][Listen] socket type[2], listen on ip[{ip}] and port[60000] fail."],
    ],
    "EI0020": [
        *code("EI0020", "Failed to bind the NPU port 16666"),
        [
            HCCL
            + "[HcclSocket][Listen] socket type[1], listen on ip[{ip}] and specific port[16666]"
            " fail. Please check the port status"
        ],
    ],
    "EJ0001": code(
        "EJ0001",
        "Failed to initialize the HCCP process. Reason: The last training process may run.",
    ),
    "EJ0002": [*code("EJ0002", "The network port of the device is down"), ["eth{dev} LINK DOWN"]],
    "EJ0003": code("EJ0003", "Failed to bind the IP address {ip} and port 16666"),
    "EJ0004": code("EJ0004", "Check ip fail. Reason: {ip} is not that of the network card"),
    "EL0001": code("EL0001", "The device {dev} is abnormal or absent"),
    "EL0004": code("EL0004", "Failed to allocate memory requested by GE module.", "Memory_Failure"),
    "E30003": code("E30003", "The number of user processes on the device exceeds the limit"),
    "E30005": code("E30005", "Failed to connect to the device. Its heartbeat is missing"),
    "EE1001": code("EE1001", "The argument is invalid. Reason: rtSetDevice, drv devid is wrong"),
    "EC0010": [
        *code("EC0010", "Failed to import Python module [No module named 'tbe']."),
        ["E40020: {t} Failed to import Python module te"],
    ],
    "device-id": [
        *code("EL0003", "The argument device id is invalid"),
        [MINDSPORE + "SetDevice] Set device failed, error code [107001]"],
    ],
    "device-busy": [
        *code("EL0005", "The resource is busy"),
        [MINDSPORE + "Init] Open device failed, there may be other processes occupying this card"],
    ],
    "device-memory": [
        [MINDSPORE + "Alloc] Device(id:{dev}) memory isn't enough and alloc failed, 2147483648"],
        *python("RuntimeError: Out of Memory! Free memory pool size: 1024"),
    ],
    "host-memory": [
        *python("MemoryError"),
        ["[ERROR] MD({pid},ff,python):{t} Memory malloc failed."],
    ],
    "rank-table-unset": [[MINDSPORE + "Init] Get hccl rank_table_file failed"]],
    "rank-id-unset": [[MINDSPORE + "Init] Environment variable RANK_ID has not been exported"]],
    "1343225860": [[MINDSPORE + "InitHccl] Ascend error occurred, error code 1343225860"]],
    "cann-libraries": python(
        "ImportError: libhccl.so: cannot open shared object file: No such file"
    ),
    "python-import": python("ModuleNotFoundError: No module named 'mindformers'"),
    "strategy": python("ValueError: The shape 65024 can not be split by strategy (3, 1)"),
    "pipeline-only-strategy": python(
        "ValueError: the strategy file only contains pipeline-parallelism"
    ),
    "scheduler-name": python("RuntimeError: DNS resolution failed: [Errno -2] Name unknown."),
    "permission": python("PermissionError: [Errno 13] Permission denied: '/dev/davinci{dev}'"),
    "aicore": [
        [
            "[ERROR] RUNTIME({pid},python):{t} [task.cc:12]{pid} Print:[INIT][DEFAULT]"
            "Aicore kernel execute failed, device_id={dev}, stream_id=2, fault kernel_name=MatMul_1"
        ],
    ],
    "getnext-slow": [
        [
            "[WARNING] DEVICE({pid},ff,python):{t} [mindspore/x.cc:7] Dump] GetNext error may "
            "be caused by slow data processing (bigger than 20s / batch) or transfer data error."
        ],
        *code("E30008", "AI CPU operator execution time out"),
    ],
    "dataset": python(
        "RuntimeError: Exception thrown from user defined Python function in dataset."
    ),
    "missing-shard": python(
        "ValueError: The checkpoint file of rank3 is needed for converting rank0"
    ),
    "disk-full": python("OSError: [Errno 28] No space left on device"),
    "loss-nan": [
        ["{iso} - mindformers - INFO - Epoch:[ 1/ 2], step:[ 90/900], loss: nan, lr: 0.1"]
    ],
    "killed": [["launch.sh: line 9: {pid} Killed                  python run_mindformer.py"]],
    "crash": [
        ["Fatal Python error: Segmentation fault", "", "Current thread 0x00007f (most recent)"],
        ["launch.sh: line 9: {pid} Segmentation fault      (core dumped) python run.py"],
    ],
    "scheduler-port": python(
        "RuntimeError: The port MS_SCHED_PORT is occupied, Address already in use"
    ),
    "python-error": python("KeyError: 'input_ids'"),
    "runtime-error": python("RuntimeError: the kernel Softmax got an input that it does not know"),
}
"""By id of the signature: the blocks of lines that a rank writes in which this broke."""

SYMPTOMS_START = [
    ["EI0006: {t} Getting socket times out. Reason: remote rank did not come up in time."],
    ["EI0006: [PID: {pid}] {t} Getting socket times out. Reason: see the peer."],
    [
        HCCL
        + "[Wait][LinkEstablish]wait socket establish timeout, role[1] rank[{rank}] timeout[120]"
    ],
    ["[PID: {pid}] {t} Communication_Error_Timeout(EI0006): Getting socket times out."],
    [MINDSPORE + "Init] Failed to fetch the unique id of the collective lib from the server"],
]
"""What other ranks write when one does not come up."""

SYMPTOMS_TRAINING = [
    ["EI0002: {t} The wait execution of the Notify register times out. Reason: not received."],
    [
        HCCL
        + "[TaskExecStage][Timeout][HOST]Task run failed, streamID:[7], taskID[3], tag[AllReduce]"
    ],
    ["EE1002: {t} Stream synchronize timed out"],
    ["EI0012: {t} SDMA memory copy task failed"],
    [MINDSPORE + "Sync] Sync stream failed, error code 107020, task timeout"],
]
"""What other ranks write when one leaves in the middle of training."""

WRAPPERS = [
    ["EZ9999: Inner Error!", "EZ9999: {t} rtStreamSynchronize execute failed, reason=[x]"],
    ["EE9999: {t} Inner Error!"],
    [
        "Traceback (most recent call last):",
        '  File "run_mindformer.py", line 250, in main',
        "RuntimeError: Call GE RunGraphWithStreamAsync Failed, ret is: 4294967295",
    ],
    [MINDSPORE + "Exec] Execute graph failed, error code 507033"],
]
"""What follows an error in the same log and says nothing of its own."""

ENDED_BY_US = [
    ["Traceback (most recent call last):", '  File "x.py", line 3, in wait', "KeyboardInterrupt"],
    ["[WARNING] ME({pid}):{t} received SIGTERM, saving a checkpoint"],
    [],
]
"""What a rank writes that was asked to end."""

NOISE = [
    "[WARNING] DEVICE({pid},ffff81f2,python):{t} [mindspore/ccsrc/mem.cc:{line}] Get] Use it",
    "[WARNING] ME({pid}:281473,MainProcess):{iso} [mindspore/model.py:{line}] no eval dataset",
    "[INFO] HCCL({pid},python):{t} [config.cc:{line}] [{pid}]HCCL_CONNECT_TIMEOUT set to [1800]s",
    "[INFO] RUNTIME({pid},python):{t} [stream.cc:{line}] error code table loaded, timeout 0",
    "{iso} - mindformers[trainer.py:{line}] - INFO - load checkpoint shard {line} of 960, 0 errors",
    "{iso} - mindformers[callback.py:{line}] - INFO - heartbeat ok, failed nodes: 0",
    "{iso} - mindformers[data.py:{line}] - WARNING - hint: Permission denied is common",
    "/usr/lib/python3.9/x.py:{line}: UserWarning: ImportError: falling back to slow path",
    "Downloading tokenizer: {line}%|####      | {line}/900 [00:01<00:09, 12.3it/s]",
    "  warnings.warn('retry after error is on')",
    "注意：数据集第 {line} 行为空，已跳过",
    "",
]
"""What ranks write that are well; some of it looks like trouble."""

STEP = (
    "{iso} - mindformers[callback.py:31] - INFO - Epoch:[  1/  2], step:[{line:5d}/  900], "
    "loss:[3.{line:03d}/3.1], time:410.1 ms, lr:4e-05, overflow cond: False"
)
