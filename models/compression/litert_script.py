"""Run by a Python that has `litert-torch`, which need not have our code: a program of torch.export into LiteRT's form.

python litert_script.py PROGRAM.pt2 ROWS.npy TARGET.tflite ANSWERS.npy

Afterwards TARGET answers as many rows as are in ROWS at a time, and ANSWERS holds what it answers to them.
"""

import sys

import numpy as np


def main(program: str, rows: str, target: str, answers: str) -> None:
    import litert_torch
    import torch
    from ai_edge_litert.interpreter import Interpreter

    x = np.load(rows)
    network = torch.export.load(program).module(check_guards=False)
    litert_torch.convert(network, (torch.from_numpy(x),)).export(target)
    interpreter = Interpreter(model_path=target, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    np.save(answers, interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
