"""gRPC as any other program speaks it: nothing is known of the services but what reflection tells."""

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

PACKAGE = "mcpscope.v1"
# No proxy of the machine's between us and a loopback address.
OPTIONS = (("grpc.enable_http_proxy", 0),)


def channel_to(address: str, *options) -> grpc.Channel:
    return grpc.insecure_channel(address, options=OPTIONS + options)


class Rpc:
    """Calls `mcpscope.v1` by the names of services and methods; fields of the request are keyword arguments."""

    def __init__(self, address: str, *options):
        self.channel = channel_to(address, *options)
        self.database = ProtoReflectionDescriptorDatabase(self.channel)
        self.pool = descriptor_pool.DescriptorPool(self.database)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()

    def find(self, name: str):
        """The descriptor of the method `Service.Method`."""
        service, method = name.split(".")
        return self.pool.FindServiceByName(f"{PACKAGE}.{service}").methods_by_name[method]

    def request(self, name: str, /, **fields) -> Message:
        return message_factory.GetMessageClass(self.find(name).input_type)(**fields)

    def stub(self, name: str):
        """What grpcio makes of the method."""
        method = self.find(name)
        sides = ("stream" if side else "unary" for side in (method.client_streaming, method.server_streaming))
        path = f"/{method.containing_service.full_name}/{method.name}"
        return getattr(self.channel, "_".join(sides))(
            path,
            request_serializer=message_factory.GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )

    def __call__(self, name: str, /, timeout: float = 10, **fields):
        """The answer, or the stream of answers."""
        return self.stub(name)(self.request(name, **fields), timeout=timeout)

    def refused(self, name: str, /, **fields) -> tuple[grpc.StatusCode, str]:
        """The status of a call that must fail."""
        return failure(lambda: self(name, **fields))


def failure(call) -> tuple[grpc.StatusCode, str]:
    """The status that `call` ends with, which must be an error."""
    try:
        answer = call()
    except grpc.RpcError as error:
        return error.code(), error.details()
    raise AssertionError(f"no error, but {answer!r}")


def plain(message: Message) -> dict:
    """A message as the HTTP API has it: enum values by their words, what is absent left out."""
    return {
        field.name: field_value(field, getattr(message, field.name))
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


def field_value(field, value):
    if field.message_type and field.message_type.GetOptions().map_entry:
        inner = field.message_type.fields_by_name["value"]
        return {key: single(inner, item) for key, item in value.items()}
    if field.is_repeated:
        return [single(field, item) for item in value]
    return single(field, value)


def single(field, value):
    if field.message_type:
        return plain(value)
    if field.enum_type:
        prefix = field.enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
        return field.enum_type.values_by_number[value].name.removeprefix(prefix).lower()
    return value
