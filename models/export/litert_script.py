"""Run by a Python that has `litert-torch`, which need not have our code: a program of torch.export into LiteRT's form.

python litert_script.py PROGRAM.pt2 ROWS.npy TARGET.tflite ANSWERS.npy

Afterwards TARGET answers one row at a time, and ANSWERS holds what it answers to those in ROWS.
"""

import sys

import numpy as np


def main(program: str, rows: str, target: str, answers: str) -> None:
    import litert_torch
    import torch
    from ai_edge_litert.interpreter import Interpreter

    x = np.load(rows)
    network = torch.export.load(program).module(check_guards=False)
    litert_torch.convert(network, (torch.from_numpy(x[:1]),)).export(target)
    interpreter = Interpreter(model_path=target, num_threads=1)
    interpreter.allocate_tensors()
    read, written = (one[0]["index"] for one in (interpreter.get_input_details(), interpreter.get_output_details()))
    answered = []
    for row in range(len(x)):
        interpreter.set_tensor(read, x[row : row + 1])
        interpreter.invoke()
        answered.append(interpreter.get_tensor(written))
    np.save(answers, np.concatenate(answered))


if __name__ == "__main__":
    main(*sys.argv[1:])
