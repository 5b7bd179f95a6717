"""A gRPC server of its own process, since gRPC's threads and forks of the tests do not go together.

It prints its port, answers each call of /shop.Shop/Ask with the client's address, and ends with its standard
input.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import grpc


def main() -> None:
    server = grpc.server(ThreadPoolExecutor(4))
    ask = grpc.unary_unary_rpc_method_handler(lambda _request, context: context.peer().encode())
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Shop", {"Ask": ask}),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(0)


if __name__ == "__main__":
    main()
