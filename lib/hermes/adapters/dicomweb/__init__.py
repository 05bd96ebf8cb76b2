"""Images and labels on a DICOMweb server: a PACS."""
