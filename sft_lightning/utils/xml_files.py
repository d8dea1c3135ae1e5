"""XML files from elsewhere, read without what a document type may do: expand entities or read other files."""

from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat


def read_xml(path: Path) -> Element:
    """Read an XML file.

    Args:
        path: Path of the file.

    Raises:
        ValueError: It is not XML, or declares a document type; the message says which, without the path.
        OSError: It cannot be read.
    """
    builder = TreeBuilder()

    def refuse(*_: object) -> None:
        raise ValueError("it declares a document type (<!DOCTYPE>), which may hide other content: remove the line")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda tag, attributes: builder.start(tag, attributes)
    parser.EndElementHandler = lambda tag: builder.end(tag)
    parser.CharacterDataHandler = lambda text: builder.data(text)
    try:
        parser.Parse(path.read_bytes(), True)
    except (expat.ExpatError, LookupError) as error:  # of an unknown encoding
        raise ValueError(f"it is not XML ({error})") from error
    return builder.close()
